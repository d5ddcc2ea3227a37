"""All trackers, and the one that a config chooses."""

import importlib.util
from pathlib import Path

from sae_transcoder.config import Config, Tracker
from sae_transcoder.trackers.tracker_run import TrackerRun
from sae_transcoder.trackers.trackio_run import TrackioRun
from sae_transcoder.trackers.wandb_run import WandbRun

TRACKERS: dict[Tracker, type[TrackerRun]] = {
    Tracker.wandb: WandbRun,
    Tracker.trackio: TrackioRun,
}


def open_tracker(cfg: Config, directory: Path, identity: str) -> TrackerRun | None:
    """Begins or resumes the run of that identity at the tracker; None for tracker=none."""
    return TRACKERS[cfg.tracker](cfg, directory, identity) if cfg.tracker != Tracker.none else None


def tracker_faults(cfg: Config) -> list[str]:
    """What would keep the tracker from accepting the run's numbers, with the fix; empty if nothing would. Uses no network."""
    if cfg.tracker == Tracker.none:
        return []
    if importlib.util.find_spec(cfg.tracker) is None:
        return [f"tracker={cfg.tracker}: the package is not installed; run `pip install {cfg.tracker}`, or set tracker=none"]
    return TRACKERS[cfg.tracker].faults(cfg)
