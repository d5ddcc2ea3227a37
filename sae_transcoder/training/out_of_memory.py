"""What is done where memory does not suffice: how room is made."""

import gc
import logging
import traceback
from collections.abc import Sequence

import torch

from sae_transcoder.process.broken_device import diagnosing
from sae_transcoder.run_store.status import State
from sae_transcoder.training.managed_run import ManagedRun

log = logging.getLogger(__name__)


def make_room(active: Sequence[ManagedRun], faults: Sequence[Exception]) -> None:
    """Closes the runs of a pack that is too large; those amid a batch go on from their last save, the others from here."""
    for error in faults:
        forget(error)
    for member in active:
        if not (member.amid_batch or member.closed):
            try:
                member.save_state()
            except Exception as error:  # there may be no memory for this either: it goes on from its last save
                log.warning("%s: its state could not be saved (%s)", member.directory, error)
        member.close(State.interrupted, "out of memory; goes on in a smaller pack")


def forget(error: BaseException | None) -> None:
    """Drops the variables of the functions that an error, and what caused it, passed through: they hold tensors."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def free_memory() -> None:
    """Gives back what runs that were closed held. Raises DeviceBroken where the GPU has failed meanwhile."""
    gc.collect()
    if torch.cuda.is_available():
        with diagnosing():
            torch.cuda.empty_cache()
