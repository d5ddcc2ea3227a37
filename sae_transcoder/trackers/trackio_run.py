"""Runs at Trackio. trackio is imported only where it is chosen."""

import contextlib
import contextvars
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_transcoder.config import Config, TrackerMode, run_name, summary
from sae_transcoder.trackers.tracker_run import tracker_settings


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
            # trackio.init ends the run in its context variable; in an empty context there is none.
            self.run = contextvars.Context().run(
                trackio.init,
                cfg.project,
                name=run_name(cfg),
                group=cfg.group,
                space_id=space,
                private=True,
                config=without_lists(summary(cfg)),  # including the tags, since trackio has no field for them
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        # trackio itself resumes by name, and not at all when it writes JSONL; but two runs may have the same run_name.
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

        faults = []
        online = cfg.tracker_mode == TrackerMode.online
        try:
            SQLiteStorage.validate_project_name(cfg.project)
            if online:
                validate_repo_id(f"{cfg.entity}/{cfg.project}")
        except ValueError as error:
            faults.append(f"project={cfg.project} with tracker=trackio: {error}")
        if online and not get_token():
            faults.append(
                f"{tracker_settings(cfg)}: no Hugging Face token; run `hf auth login`, set HF_TOKEN or tracker_mode=offline"
            )
        for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
            if not online and (value := os.environ.get(name)):
                faults.append(
                    f"{tracker_settings(cfg)}: {name}={value} would send the numbers there; unset it, or set tracker_mode=online"
                )
        return faults


def without_lists(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with lists other than `tags` as text, `6, 12` for layers=[6, 12]: trackio's dashboard does not group runs by lists."""
    return {
        name: ", ".join(map(str, value)) or None if isinstance(value, list) and name != "tags" else value
        for name, value in config.items()
    }
