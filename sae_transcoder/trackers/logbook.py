"""The numbers of a run: always in metrics.jsonl, and at the tracker that `tracker` names.

A process may have many logbooks open at once, each with its own run at the tracker. Steps are optimizer steps, counted from 1.
"""

import json
import logging
import math
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_transcoder.config import Config, Tracker, signature
from sae_transcoder.process.atomic_files import replace_text
from sae_transcoder.run_store.checked_files import DamagedFile, damaged, is_integer, read_object, read_text
from sae_transcoder.run_store.run_files import LINE_FIX, METRICS, parse_line
from sae_transcoder.trackers.open_tracker import open_tracker

LOG = logging.getLogger(__name__)


def truncate_metrics(path: Path, step: int) -> list[dict[str, Any]]:
    """Removes an incomplete last line and all lines after `step` from a metrics.jsonl, and returns the remaining rows.

    Raises DamagedFile if a line before the last is not of metrics.
    """
    text = read_text(path, LINE_FIX) or ""
    lines = text.rstrip("\n").split("\n") if text else []
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            row = parse_line(line, path)
            if (logged := row.get("step")) is None:
                raise damaged(path, f"line {number}: without a step", LINE_FIX)
        except DamagedFile as error:
            if number == len(lines):
                break
            raise damaged(path, f"line {number} is not of metrics", LINE_FIX) from error
        if logged <= step:
            kept.append((line, row))
    if (remaining := "".join(line + "\n" for line, _ in kept)) != text:
        replace_text(path, remaining)
    return [row for _, row in kept]


def read_state(path: Path) -> dict[str, Any]:
    """A run's identity at its tracker, and {destination: last step sent there}. Raises DamagedFile."""
    fix = "remove it, and the tracker shows the rest as a new run"
    state = read_object(path, fix) or {}
    steps = state.get("last_steps")
    if not isinstance(state.get("id"), str) or not isinstance(steps, dict) or not all(map(is_integer, steps.values())):
        raise damaged(path, "no identity at a tracker", fix)
    return state


class Logbook:
    """Writes the numbers of one run to metrics.jsonl, then to the run's tracker, if it has one.

    tracker.json in the same folder holds the run's identity at the tracker and the last step sent to each destination. So a resumed run
    continues its run at the tracker: lines of metrics.jsonl that the tracker lacks are sent, and steps that it has are not repeated.
    """

    def __init__(self, cfg: Config, directory: Path, step: int = 0):
        """`step`: the optimizer step after which training continues; drops later lines of an earlier attempt."""
        rows = truncate_metrics(directory / METRICS, step)
        self.state_path = directory / "tracker.json"
        self.state: dict[str, Any] = {"id": f"{signature(cfg)}-{secrets.token_hex(4)}", "last_steps": {}}
        if self.state_path.exists():
            self.state = read_state(self.state_path)
        elif cfg.tracker != Tracker.none:
            replace_text(self.state_path, json.dumps(self.state))
        self.tracker = open_tracker(cfg, directory, self.state["id"])
        self.file = (directory / METRICS).open("a")
        if self.tracker:
            if self.tracker.last_step is not None:
                self.state["last_steps"][self.tracker.destination] = self.tracker.last_step
            for row in rows:
                values = {name: math.nan if value is None else value for name, value in row.items() if name != "step"}
                self.send(row["step"], values)

    @property
    def where(self) -> str | None:
        """Tells the user, in one line, where the tracker shows the run; None without a tracker."""
        return self.tracker.where if self.tracker else None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the line of an optimizer step. A number that is not finite is null in metrics.jsonl, since JSON has no such numbers."""
        row = {"step": step} | {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.file.write(json.dumps(row, allow_nan=False) + "\n")
        self.file.flush()
        self.send(step, values)

    def send(self, step: int, values: Mapping[str, float]) -> None:
        """Sends a line to the tracker unless it has that step. If the tracker fails, logs a warning and stops using it."""
        if self.tracker is None or step <= self.state["last_steps"].get(self.tracker.destination, 0):
            return
        try:
            self.tracker.log(step, values)
        except Exception as error:  # trackers raise many kinds; none may end the training
            LOG.warning("%s takes no more numbers from step %d on: %r; metrics.jsonl goes on", self.where, step, error)
            self.tracker = None
            return
        self.state["last_steps"][self.tracker.destination] = step
        replace_text(self.state_path, json.dumps(self.state))

    def finish(self, exit_code: int) -> None:
        """Closes the file and the tracker's run; exit code 0: the run is done. If the tracker fails, logs a warning."""
        self.file.close()
        try:
            if self.tracker:
                self.tracker.finish(exit_code)
        except Exception as error:
            LOG.warning("%s could not be finished: %r; metrics.jsonl is complete", self.where, error)
