"""Where a run's numbers go: always metrics.jsonl, and the tracker that `tracker` names.

A process may hold many logbooks at once; each has its own run at the tracker. Steps count optimizer steps from 1.
wandb and trackio are imported only where they are chosen.
"""

import contextlib
import contextvars
import importlib.util
import io
import json
import logging
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from sae_transcoder.config import Config, Tracker, TrackerMode, run_name, signature, summary
from sae_transcoder.process.atomic_files import replace_text

LOG = logging.getLogger(__name__)


class TrackerRun(Protocol):
    """One run, open at a tracker."""

    destination: str
    """Names the place that holds the numbers; another project, owner or mode is another place."""
    where: str
    """A line for the user: where to look."""
    last_step: int | None
    """Last step that the tracker held when the run was opened, 0 for none; None where it cannot be asked."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def finish(self, exit_code: int) -> None:
        """Delivers what is still queued and closes the run; a code other than 0 marks it as failed, where the tracker can."""


class WandbRun:
    """A run at Weights & Biases, or its files in DIRECTORY/wandb for a later `wandb sync`: one file per process, one id.

    A process that is killed leaves the last half second out of its offline file; metrics.jsonl has it.
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
            # wandb writes its offline file every 15 s; what a killed process has not written is missing from it.
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
        self.run.log(dict(values), step=step, commit=True)  # without commit wandb holds a step back until the next one

    def finish(self, exit_code: int) -> None:
        self.run.finish(exit_code=exit_code)

    @staticmethod
    def faults(cfg: Config) -> list[str]:
        import wandb
        from wandb.sdk import wandb_setup
        from wandb.sdk.lib import wbauth

        found = []
        try:
            wandb.Settings(project=cfg.project)
        except wandb.Error as error:
            found.append(f"project={cfg.project} with tracker=wandb: {error}; choose another name")
        if any(not 1 <= len(tag) <= 64 for tag in cfg.tags):
            found.append(f"tags={cfg.tags} with tracker=wandb: tags have 1 to 64 characters")
        try:
            # The public ways, wandb.login and wandb.Api, verify the key over the network or log the session in.
            settings = wandb_setup.singleton().settings
            mode = cfg.tracker_mode or settings.mode
            if mode not in ("offline", "dryrun", "disabled") and not wbauth.authenticate_session(
                host=settings.base_url, source="sae-train", prompt=False, update_session=False
            ):
                found.append(f"{asked(cfg)}: no login; run `wandb login`, set WANDB_API_KEY or tracker_mode=offline")
        except (ValueError, wandb.Error) as error:
            found.append(f"tracker=wandb: wandb cannot use its own settings; correct them (WANDB_*), or set tracker=none: {error}")
        return found


class TrackioRun:
    """A run in Trackio's local database (TRACKIO_DIR), or with tracker_mode=online in the Space `entity/project`.

    A Space that does not exist yet is created private.
    """

    def __init__(self, cfg: Config, directory: Path, identity: str):
        with contextlib.redirect_stdout(io.StringIO()):
            import trackio
            from trackio import utils
            from trackio.sqlite_storage import SQLiteStorage

            space = f"{cfg.entity}/{cfg.project}" if cfg.tracker_mode == TrackerMode.online else None
            # trackio.init ends the run that its context variable holds; in an empty context it finds none.
            self.run = contextvars.Context().run(
                trackio.init,
                cfg.project,
                name=run_name(cfg),
                group=cfg.group,
                space_id=space,
                private=True,
                config=groupable(summary(cfg)),  # holds the tags, for which trackio has no place of their own
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        # trackio itself resumes by name, and not at all where it writes JSONL; two runs may share a set run_name.
        self.run.id = identity
        self.destination = f"trackio {space or f'{utils.TRACKIO_DIR}/{cfg.project}'}"
        self.where = f"trackio: https://huggingface.co/spaces/{space}" if space else f'trackio show --project "{cfg.project}"'
        self.last_step = None
        if not space and utils.get_storage_mode() == "sqlite":
            self.last_step = SQLiteStorage.get_max_step_for_run(cfg.project, self.run.name, run_id=identity) or 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def finish(self, exit_code: int) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.run.finish()

    @staticmethod
    def faults(cfg: Config) -> list[str]:
        from huggingface_hub import get_token
        from huggingface_hub.utils import validate_repo_id
        from trackio.sqlite_storage import SQLiteStorage

        found = []
        online = cfg.tracker_mode == TrackerMode.online
        try:
            SQLiteStorage.validate_project_name(cfg.project)
            if online:
                validate_repo_id(f"{cfg.entity}/{cfg.project}")
        except ValueError as error:
            found.append(f"project={cfg.project} with tracker=trackio: {error}")
        if online and not get_token():
            found.append(f"{asked(cfg)}: no Hugging Face token; run `hf auth login`, set HF_TOKEN or tracker_mode=offline")
        for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
            if not online and (value := os.environ.get(name)):
                found.append(f"{asked(cfg)}: {name}={value} would send the numbers there; unset it, or set tracker_mode=online")
        return found


def groupable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config for trackio's dashboard, which groups runs by fields that are no lists: layers=[6, 12] as `6, 12`."""
    return {
        name: ", ".join(map(str, value)) or None if isinstance(value, list) and name != "tags" else value
        for name, value in config.items()
    }


TRACKERS: dict[Tracker, type[WandbRun] | type[TrackioRun]] = {Tracker.wandb: WandbRun, Tracker.trackio: TrackioRun}


def asked(cfg: Config) -> str:
    """The settings that choose the tracker, for messages."""
    return f"tracker={cfg.tracker} with tracker_mode={cfg.tracker_mode or 'null'}"


def check(cfg: Config) -> list[str]:
    """What would keep the tracker from taking the run's numbers, with the fix; empty if nothing would. Uses no network."""
    if cfg.tracker == Tracker.none:
        return []
    if importlib.util.find_spec(cfg.tracker) is None:
        return [f"tracker={cfg.tracker}: the package is not installed; run `pip install {cfg.tracker}`, or set tracker=none"]
    return TRACKERS[cfg.tracker].faults(cfg)


def open_tracker(cfg: Config, directory: Path, identity: str) -> TrackerRun | None:
    """The tracker's run of that identity (letters, digits and hyphens), begun or resumed; None for tracker=none."""
    return TRACKERS[cfg.tracker](cfg, directory, identity) if cfg.tracker != Tracker.none else None


def cut(path: Path, step: int) -> list[dict[str, Any]]:
    """Removes from a metrics.jsonl a torn last line and every line above `step`; returns the lines that stay.

    Raises ValueError where a line before the last is not JSON.
    """
    if not path.exists():
        return []
    text = path.read_text()
    lines = text.split("\n")
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            if any(lines[number:]):
                raise ValueError(f"{path}, line {number}: not JSON; repair or remove the line") from None
            break
        if row["step"] <= step:
            kept.append((line, row))
    if (remaining := "".join(line + "\n" for line, _ in kept)) != text:
        replace_text(path, remaining)
    return [row for _, row in kept]


class Logbook:
    """The numbers of one run: each line goes to metrics.jsonl, then, where there is one, to the run's tracker.

    tracker.json beside it holds the run's identity at the tracker and the last step handed to each destination, so that
    a resumed run continues its tracker run: lines of metrics.jsonl that the tracker lacks are handed over, and
    steps that it holds are not repeated.
    """

    def __init__(self, cfg: Config, directory: Path, step: int = 0):
        """`step`: the optimizer step from which training goes on; later lines of an earlier attempt are dropped."""
        rows = cut(directory / "metrics.jsonl", step)
        self.journal = directory / "tracker.json"
        self.state: dict[str, Any] = {"id": f"{signature(cfg)}-{secrets.token_hex(4)}", "last_steps": {}}
        if self.journal.exists():
            self.state = json.loads(self.journal.read_text())
        elif cfg.tracker != Tracker.none:
            replace_text(self.journal, json.dumps(self.state))
        self.tracker = open_tracker(cfg, directory, self.state["id"])
        self.file = (directory / "metrics.jsonl").open("a")
        if self.tracker:
            if self.tracker.last_step is not None:
                self.state["last_steps"][self.tracker.destination] = self.tracker.last_step
            for row in rows:
                values = {name: math.nan if value is None else value for name, value in row.items() if name != "step"}
                self.hand_over(row["step"], values)

    @property
    def where(self) -> str | None:
        """A line that tells the user where the tracker shows the run; None without a tracker."""
        return self.tracker.where if self.tracker else None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the line of an optimizer step. In metrics.jsonl a number that is not finite is null, for JSON has none."""
        row = {"step": step} | {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.file.write(json.dumps(row, allow_nan=False) + "\n")
        self.file.flush()
        self.hand_over(step, values)

    def hand_over(self, step: int, values: Mapping[str, float]) -> None:
        """Gives a line to the tracker unless it holds that step; a tracker that fails is given up with a warning."""
        if self.tracker is None or step <= self.state["last_steps"].get(self.tracker.destination, 0):
            return
        try:
            self.tracker.log(step, values)
        except Exception as error:  # of many kinds; none may end a training whose numbers are in metrics.jsonl
            LOG.warning("%s takes no more numbers from step %d on: %r; metrics.jsonl goes on", self.where, step, error)
            self.tracker = None
            return
        self.state["last_steps"][self.tracker.destination] = step
        replace_text(self.journal, json.dumps(self.state))

    def finish(self, exit_code: int) -> None:
        """Closes the file and the tracker's run; 0 is a run that is done. What the tracker cannot deliver is a warning."""
        self.file.close()
        try:
            if self.tracker:
                self.tracker.finish(exit_code)
        except Exception as error:
            LOG.warning("%s could not be finished: %r; metrics.jsonl is complete", self.where, error)
