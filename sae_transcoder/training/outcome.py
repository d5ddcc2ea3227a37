"""What becomes of a run: its result, or the exception that ended it."""

from dataclasses import dataclass
from pathlib import Path

from sae_transcoder.config import Config
from sae_transcoder.run_store.eval_file import Evaluation


@dataclass(frozen=True)
class TrainedRun:
    """A run that is done: its settings, its directory, and its held-out metrics (names and units: metric_names.py)."""

    cfg: Config
    directory: Path
    evaluation: Evaluation


Outcome = TrainedRun | Exception
