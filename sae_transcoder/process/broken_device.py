"""Errors that leave a GPU of no use to this process: illegal accesses to its memory, kernels' failed assertions, uncorrectable ECC errors.

Whatever the process does on the GPU afterwards fails as well, and says nothing of the run that does it. So no run fails of such an error: the
process leaves its runs interrupted and ends, and a new one goes on with them.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from sae_transcoder.process.memory_errors import is_out_of_memory

# What torch, which has an exception for the first of these, and Triton say. Too little memory is said in the same words, and breaks nothing.
BROKEN = ("CUDA error", "HIP error", "CUDA driver error", "Triton Error [CUDA]")
FAILED = "the GPU failed"
EXIT_CODE = 128 + signal.SIGABRT  # as of a process that CUDA itself ends


class DeviceBroken(BaseException):
    """This process can use its GPU no more; its runs are interrupted. Like Stopped no Exception: it ends a sweep as well."""

    def __init__(self, error: Exception):
        super().__init__(f"{FAILED} ({type(error).__name__}: {str(error).partition(chr(10))[0]})")


def end_if_broken(error: Exception) -> None:
    """Raises DeviceBroken for an error after which the GPU is of no use."""
    import torch

    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return
    if isinstance(error, torch.AcceleratorError) or any(text in str(error) for text in BROKEN):
        raise DeviceBroken(error) from error


@contextmanager
def diagnosing() -> Iterator[None]:
    """While it is open, such an error is raised as DeviceBroken."""
    try:
        yield
    except RuntimeError as error:
        end_if_broken(error)
        raise
