"""Settings that a process makes before it uses a device: torch, its allocator, malloc, the limit of open files."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sae_transcoder.process import host_memory

if TYPE_CHECKING:
    import torch

    from sae_transcoder.config import Config

# Environment variables of torch's allocator; for a GPU torch 2.9 reads the second name only, which later versions deprecate.
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
# Environment variables by which GNU's, Intel's and LLVM's OpenMP are told how threads wait.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def expand_segments() -> None:
    """Has torch allocate a GPU's memory in segments that grow, which wastes less between tensors of unequal size.

    Does nothing where the environment configures the allocator. Called before this process first uses a GPU; its child processes inherit it.
    """
    if not any(name in os.environ for name in (*ALLOCATOR, "PYTORCH_HIP_ALLOC_CONF")):
        os.environ.update(dict.fromkeys(ALLOCATOR, "expandable_segments:True"))


def let_waiting_threads_sleep() -> None:
    """Has OpenMP's threads sleep while they wait for each other, not spin on a core that another process could use.

    Two runs at once on two cores take 10 s each in place of 28, one alone 6.1 in place of 5.9 (benchmarks/ourselves/busy_machine.py). Does nothing
    where the environment says how threads wait. Called before torch is imported, which reads this once; child processes inherit it.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "passive"


@contextmanager
def configured(cfg: Config, device: torch.device) -> Iterator[None]:
    """Configures the process for a run while it is open; restores threads, precision and determinism afterwards."""
    import torch

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # each run of a large pack keeps files open
    if 0 < limit < 2**20:  # some systems refuse more
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # Triton's kernels run on the current one
    else:
        host_memory.keep_freed()
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    deterministic, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get(CUBLAS)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    torch.set_float32_matmul_precision("high")  # as sparsify's Trainer.fit
    if cfg.deterministic:
        os.environ.setdefault(CUBLAS, ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(deterministic, warn_only=warned)
        if workspace is None:
            os.environ.pop(CUBLAS, None)
