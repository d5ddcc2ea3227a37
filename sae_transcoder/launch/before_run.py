"""Hydra's hook before it writes anything: a run that is refused, or need not be started, leaves nothing behind."""

import sys
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from sae_transcoder import distributed
from sae_transcoder.config import ConfigError, Hardware, composition, run_dir
from sae_transcoder.distributed import refuse
from sae_transcoder.launch.endings import end_with_message
from sae_transcoder.preflight.plan_cache import PlanCache


class BeforeTheRun(Callback):
    """Checks everything. Ends the program itself, since Hydra turns a callback's exceptions into warnings."""

    cache: PlanCache | None = None  # what the run was planned with, for the training, which Hydra calls apart from this

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuses several ranks, and launchers that would neither check the jobs together nor train them side by side."""
        if (count := distributed.world_size()) > 1:
            fault = f"-m on {count} ranks (torchrun): ranks train one run together; start each run of the sweep by its own command"
            refuse([fault])
        usual = "slurm" if config.hardware == Hardware.slurm else "local"
        if config.hydra.launcher._target_ != f"hydra_plugins.sae_transcoder_{usual}.{usual.capitalize()}Launcher":
            launcher = f"hydra/launcher={config.hydra.runtime.choices['hydra/launcher']}"
            refuse([f"{launcher} with hardware={config.hardware}: trains no sweep there; leave it out, and choose hardware"])

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Ends the program with exit code 1 if the run must be refused, 0 if there is nothing to do. Of several ranks, the first one decides
        and prints for all."""
        try:
            ranks, code = distributed.meet(), None
        except ConfigError as error:
            refuse(error.faults, on_every_rank=True)
        if ranks.leads:
            try:
                BeforeTheRun.cache = end_unless_to_be_trained(config)
            except SystemExit as end:
                code = end.code
        if (code := ranks.broadcast(code)) is not None:
            sys.exit(code)


def end_unless_to_be_trained(config: DictConfig) -> PlanCache:
    """Checks all that the run needs, here or on the cluster, and returns what its plan was made with. Ends the program if the run is refused,
    need not be started, or only to be shown or prepared."""
    # Hydra imports this file for --cfg too, which checks nothing.
    from sae_transcoder.launch.checks import check_cluster, end_before_training, plan_run
    from sae_transcoder.preflight.plan import check_settings
    from sae_transcoder.run_store import observed_status

    with end_with_message([]):  # here: Hydra makes a warning of what a callback raises, and goes on
        cfg = composition.typed(config)
        check_settings(cfg)
        if note := observed_status.nothing_to_do(run_dir(cfg)):
            print(note)
            sys.exit(0)
        check_cluster(cfg)
        plan = plan_run(cfg, cache := PlanCache())
        if cfg.dry_run or cfg.prepare:
            from rich.console import Console

            from sae_transcoder.preflight.header import print_header

            print_header([plan], Console(highlight=False))
            end_before_training([[cfg]])
    return cache
