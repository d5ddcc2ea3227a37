"""Where metrics go besides metrics.jsonl."""

from dataclasses import dataclass
from enum import StrEnum

from sae_transcoder.config.fields.metadata import no_result


class Tracker(StrEnum):
    none = "none"
    wandb = "wandb"
    trackio = "trackio"


class TrackerMode(StrEnum):
    online = "online"
    offline = "offline"


@dataclass
class TrackerConfig:
    """Where numbers go besides metrics.jsonl (group `tracker`)."""

    tracker: Tracker = no_result(Tracker.none)
    """none, wandb or trackio."""
    tracker_mode: TrackerMode | None = no_result(None)
    """online or offline. null: for wandb WANDB_MODE, else online; for trackio offline, a local database."""
    project: str = no_result("sae-transcoder")
    """Project at the tracker."""
    entity: str | None = no_result(None)
    """wandb: user or team; trackio, online: Hugging Face user or organisation that owns the Space."""
    group: str | None = no_result(None)
    """Group of runs at the tracker."""
    tags: list[str] = no_result([])
    """Tags of the run at the tracker (trackio shows them in the run's config)."""
    log_every: int = no_result(10, at_least=1)
    """Optimizer steps per line of metrics.jsonl and of the tracker; each line averages the steps since the one before."""
