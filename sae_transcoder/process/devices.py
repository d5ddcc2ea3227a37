"""Settings of the whole process, made before it touches a device: torch's, its allocator's, malloc's, how many files it may open."""

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

# Where torch's allocator looks for its settings; for a GPU torch 2.9 knows the second name only, which later versions deprecate.
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def expand_segments() -> None:
    """Lets a GPU's memory be handed out in segments that grow, of which less lies idle between tensors of unequal size.

    Does nothing where the environment says how memory is handed out. To be called before this process first uses a GPU; those that it
    starts inherit it.
    """
    if not any(name in os.environ for name in (*ALLOCATOR, "PYTORCH_HIP_ALLOC_CONF")):
        os.environ.update(dict.fromkeys(ALLOCATOR, "expandable_segments:True"))


@contextmanager
def configured(cfg: Config, device: torch.device) -> Iterator[None]:
    """The process as a run of these settings needs it while it is open; threads, precision and determinism are then as they were."""
    import torch

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # each run of a large pack keeps files open
    if 0 < limit < 2**20:  # what is more, some systems do not take
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
