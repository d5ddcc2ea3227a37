"""Hydra's hook before it writes anything: a run that is refused, or need not be started, leaves nothing behind."""

import sys
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from sae_transcoder import distributed
from sae_transcoder.config import Config, ConfigError, Hardware, run_dir, typed
from sae_transcoder.distributed import refuse
from sae_transcoder.preflight import plan as preflight
from sae_transcoder.run_store import observed_status


class BeforeTheRun(Callback):
    """Checks everything; exceptions of callbacks are only warnings to Hydra, so it ends the program itself."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuses several ranks, and launchers under which the jobs would be neither checked together nor trained side by side."""
        if distributed.world_size() > 1:
            refuse(
                [
                    f"-m on {distributed.world_size()} ranks (torchrun): ranks train one run together; start each run of the sweep by its own command"
                ]
            )
        chosen = config.hydra.runtime.choices["hydra/launcher"]
        usual = "slurm" if config.hardware == Hardware.slurm else "local"
        if config.hydra.launcher._target_ != f"hydra_plugins.sae_transcoder_{usual}.{usual.capitalize()}Launcher":
            refuse(
                [
                    f"hydra/launcher={chosen} with hardware={config.hardware}: trains no sweep there; leave it out, and choose hardware"
                ]
            )

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Ends the program with exit code 1 if the run must be refused, 0 if there is nothing left to do; of several ranks the first one
        decides and speaks for all."""
        try:
            ranks, code = distributed.meet(), None
        except ConfigError as error:
            refuse(error.faults, on_every_rank=True)
        if ranks.leads:
            try:
                decide(config)
            except SystemExit as end:
                code = end.code
        if (code := ranks.broadcast(code)) is not None:
            sys.exit(code)


def decide(config: DictConfig) -> None:
    """Ends the program where the run is not to be started."""
    try:
        cfg = typed(config)
        preflight.check_settings(cfg)
        if note := observed_status.nothing_to_do(run_dir(cfg)):
            print(note)
            sys.exit(0)
        check(cfg)
    except ConfigError as error:
        refuse(error.faults)


def check(cfg: Config) -> None:
    """Checks all that the run needs, here or on the cluster; ends a dry run. Raises ConfigError."""
    on_slurm = cfg.hardware == Hardware.slurm
    if on_slurm:
        from sae_transcoder.launch.slurm import submit as slurm_submit

        slurm_submit.check(cfg)
    plan = preflight.plan(cfg, on_slurm=on_slurm)
    if cfg.dry_run:
        from rich.console import Console

        from sae_transcoder.training import display

        display.header([plan], Console(highlight=False))
        print("dry run: nothing was started")
        sys.exit(0)
