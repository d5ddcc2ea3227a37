"""Errors after which this process cannot use its GPU: illegal memory accesses, failed assertions in kernels, uncorrectable ECC errors.

Whatever the process does on the GPU afterwards fails too, whichever run does it. So no run is marked failed for such an error: the process
leaves its runs interrupted and ends, and a new process continues them.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from sae_transcoder.process.memory_errors import is_out_of_memory

# The messages of torch, which has an exception for the first of these, and of Triton. Out-of-memory errors carry the same messages, but
# break nothing.
BROKEN = ("CUDA error", "HIP error", "CUDA driver error", "Triton Error [CUDA]")
FAILED = "the GPU failed"
EXIT_CODE = 128 + signal.SIGABRT  # as when CUDA itself ends the process


class DeviceBroken(BaseException):
    """This process can no longer use its GPU; its runs are interrupted. A BaseException, like Stopped, so that it ends a sweep too."""

    def __init__(self, error: Exception):
        super().__init__(f"{FAILED} ({type(error).__name__}: {str(error).partition(chr(10))[0]})")


def raise_if_broken(error: Exception) -> None:
    """Raises DeviceBroken for an error after which the GPU cannot be used."""
    import torch

    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return
    if isinstance(error, torch.AcceleratorError) or any(text in str(error) for text in BROKEN):
        raise DeviceBroken(error) from error


@contextmanager
def diagnosing() -> Iterator[None]:
    """Raises such an error as DeviceBroken while it is open."""
    try:
        yield
    except RuntimeError as error:
        raise_if_broken(error)
        raise
