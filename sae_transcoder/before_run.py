"""Hydra's hook before it writes anything: a run that is refused, or need not be started, leaves nothing behind."""

import sys
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from sae_transcoder import preflight, standing
from sae_transcoder.composition import refuse
from sae_transcoder.config import ConfigError, Hardware, run_dir, typed


class BeforeTheRun(Callback):
    """Checks everything; exceptions of callbacks are only warnings to Hydra, so it ends the program itself."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuses launchers under which the jobs would be neither checked together nor trained side by side."""
        if not str(config.hydra.launcher._target_).startswith("hydra_plugins.sae_transcoder"):
            chosen = config.hydra.runtime.choices["hydra/launcher"]
            refuse([f"hydra/launcher={chosen} with hardware={config.hardware}: trains no sweep; leave it out, and choose hardware"])

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Ends the program with exit code 1 if the run must be refused, 0 if there is nothing left to do."""
        try:
            cfg = typed(config)
            preflight.check_settings(cfg)
            if note := standing.nothing_to_do(run_dir(cfg)):
                print(note)
                sys.exit(0)
            on_slurm = cfg.hardware == Hardware.slurm
            plan = preflight.plan(cfg, elsewhere=on_slurm)
            if on_slurm:
                from sae_transcoder import slurm_submit

                slurm_submit.check(cfg)
            if cfg.dry_run:
                from rich.console import Console

                from sae_transcoder import display

                display.header([plan], Console(highlight=False))
                print("dry run: nothing was started")
                sys.exit(0)
        except ConfigError as error:
            refuse(error.faults)
