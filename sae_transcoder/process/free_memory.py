"""How memory is freed where it does not suffice."""

import gc
import traceback

from sae_transcoder.process.broken_device import diagnosing


def clear_traceback_locals(error: BaseException | None) -> None:
    """Clears the local variables in the tracebacks of an error and of its causes: they keep tensors in memory."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def free_memory() -> None:
    """Frees what nothing refers to any more. Raises DeviceBroken where the GPU has failed in the meantime."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        with diagnosing():
            torch.cuda.empty_cache()
