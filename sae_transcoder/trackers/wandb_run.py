"""Runs at Weights & Biases. wandb is imported only where it is chosen."""

from collections.abc import Mapping
from pathlib import Path

from sae_transcoder.config import Config, run_name, summary
from sae_transcoder.trackers.tracker_run import tracker_settings


class WandbRun:
    """A run at Weights & Biases; offline, its files in DIRECTORY/wandb for a later `wandb sync`: a file for each process, all with one id.

    The offline file of a killed process lacks the last half second; metrics.jsonl has it.
    """

    def __init__(self, cfg: Config, directory: Path, identity: str):
        import wandb

        self.run = wandb.init(
            project=cfg.project,
            entity=cfg.entity,
            name=run_name(cfg),
            group=cfg.group,
            tags=cfg.tags or None,
            config=summary(cfg),
            mode=cfg.tracker_mode.value if cfg.tracker_mode else None,  # None: WANDB_MODE or `wandb offline` decides, else online
            dir=str(directory),
            id=identity,
            resume="allow",
            reinit="create_new",  # runs already open in this process stay open
            # By default wandb writes its offline file every 15 s, and a killed process loses the rest.
            settings=wandb.Settings(silent=True, console="off", x_transaction_log_flush_interval=0.5),
        )
        self.destination = f"wandb {self.run.settings.mode} {self.run.entity}/{cfg.project}"
        if self.run.disabled:
            self.where, self.last_step = "wandb is disabled (WANDB_MODE)", None
        elif self.run.offline:
            self.where, self.last_step = f"wandb, offline: wandb sync {directory}/wandb/offline-run-*", None
        else:
            self.where, self.last_step = f"wandb: {self.run.url}", self.run.starting_step - 1 if self.run.resumed else 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step, commit=True)  # without commit, wandb holds a step back until the next one

    def finish(self, exit_code: int) -> None:
        self.run.finish(exit_code=exit_code)

    @staticmethod
    def faults(cfg: Config) -> list[str]:
        import wandb
        from wandb.sdk import wandb_setup
        from wandb.sdk.lib import wbauth

        faults = []
        try:
            wandb.Settings(project=cfg.project)
        except wandb.Error as error:
            faults.append(f"project={cfg.project} with tracker=wandb: {error}; choose another name")
        if any(not 1 <= len(tag) <= 64 for tag in cfg.tags):
            faults.append(f"tags={cfg.tags} with tracker=wandb: tags have 1 to 64 characters")
        try:
            # The public functions, wandb.login and wandb.Api, verify the key over the network or log the session in.
            settings = wandb_setup.singleton().settings
            mode = cfg.tracker_mode or settings.mode
            if mode not in ("offline", "dryrun", "disabled") and not wbauth.authenticate_session(
                host=settings.base_url, source="sae-train", prompt=False, update_session=False
            ):
                faults.append(f"{tracker_settings(cfg)}: no login; run `wandb login`, set WANDB_API_KEY or tracker_mode=offline")
        except (ValueError, wandb.Error) as error:
            faults.append(f"tracker=wandb: wandb cannot use its own settings; correct them (WANDB_*), or set tracker=none: {error}")
        return faults
