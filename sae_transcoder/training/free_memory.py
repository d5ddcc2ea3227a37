"""How memory is freed where it does not suffice."""

import gc
import logging
import traceback
from collections.abc import Sequence

import torch

from sae_transcoder.process.broken_device import diagnosing
from sae_transcoder.run_store.status import State
from sae_transcoder.training.managed_run import ManagedRun

log = logging.getLogger(__name__)


def close_pack(active: Sequence[ManagedRun], errors: Sequence[Exception]) -> None:
    """Closes the runs of a pack that is too large. Runs that are mid-batch continue from their last save, the others from here."""
    for error in errors:
        clear_traceback_locals(error)
    for run in active:
        if not (run.mid_batch or run.closed):
            try:
                run.save_state()
            except Exception as error:  # there may be no memory for this either: it continues from its last save
                log.warning("%s: its state could not be saved (%s)", run.directory, error)
        run.close(State.interrupted, "out of memory; goes on in a smaller pack")


def clear_traceback_locals(error: BaseException | None) -> None:
    """Clears the local variables in the tracebacks of an error and of its causes: they keep tensors in memory."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def free_memory() -> None:
    """Frees the memory of closed runs. Raises DeviceBroken where the GPU has failed in the meantime."""
    gc.collect()
    if torch.cuda.is_available():
        with diagnosing():
            torch.cuda.empty_cache()
