"""What a logbook asks of a tracker. To add a tracker: a file with such a class, its line in open_tracker.TRACKERS, its name in config.Tracker."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from sae_transcoder.config import Config


class TrackerRun(Protocol):
    """One run, open at a tracker. The tracker's package, named as the tracker, is imported by the methods only."""

    destination: str
    """Identifies where the numbers are stored; another project, owner or mode is another destination."""
    where: str
    """Tells the user where to see the run, in one line."""
    last_step: int | None
    """Last step that the tracker held when the run was opened, 0 for none; None where it cannot be asked."""

    def __init__(self, cfg: Config, directory: Path, identity: str) -> None:
        """Begins or resumes the run of that identity (letters, digits and hyphens)."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Sends the numbers of an optimizer step, counted from 1."""

    def finish(self, exit_code: int) -> None:
        """Delivers what is still queued and closes the run; a code other than 0 marks it as failed, where the tracker can."""

    @staticmethod
    def faults(cfg: Config) -> list[str]:
        """What would keep the tracker from accepting the run's numbers, with the fix; empty if nothing would. Uses no network."""
        ...


def tracker_settings(cfg: Config) -> str:
    """The settings that choose the tracker, for messages."""
    return f"tracker={cfg.tracker} with tracker_mode={cfg.tracker_mode or 'null'}"
