"""How a pack ends that memory does not suffice for."""

import logging
from collections.abc import Sequence

from sae_transcoder.process.free_memory import clear_traceback_locals
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
