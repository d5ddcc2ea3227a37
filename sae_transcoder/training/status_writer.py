"""How far a run is, in its status.json."""

import logging
import time
from pathlib import Path

from sae_transcoder.run_store import status
from sae_transcoder.run_store.status import State, Status
from sae_transcoder.training.coder_trainer import CoderTrainer

log = logging.getLogger(__name__)

HEARTBEAT_EVERY = 5.0  # seconds


class StatusWriter:
    """Writes status.json of a run."""

    def __init__(self, directory: Path, signature: str, trainer: CoderTrainer):
        self.directory, self.signature, self.trainer = directory, signature, trainer

    def write(self, state: State, why: str | None = None, tokens_per_s: float = 0.0) -> None:
        """Replaces status.json."""
        trainer = self.trainer
        self.written_at = time.monotonic()
        progress = trainer.step, trainer.length.steps, trainer.tokens, round(tokens_per_s, 1)
        status.write(self.directory, Status(state, self.signature, *progress, why))

    def try_write(self, state: State, why: str | None = None, tokens_per_s: float = 0.0) -> None:
        """The same, but only logs an error where the file cannot be written."""
        try:
            self.write(state, why, tokens_per_s)
        except OSError as error:  # a full disk
            log.error("%s: status.json could not be written (%s)", self.directory, error)

    def heartbeat(self, tokens_per_s: float) -> None:
        """Writes that the run is alive, every few seconds."""
        if time.monotonic() - self.written_at > HEARTBEAT_EVERY:
            self.try_write(State.running, tokens_per_s=tokens_per_s)
