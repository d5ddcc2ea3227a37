"""The memory of this machine: how the C library allocates that of tensors, how much is free."""

import os
from pathlib import Path

# glibc's mallopt: its parameters (malloc.h), and the largest values that it accepts.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MOST_KEPT, LARGEST_KEPT = 2**31 - 1, 2**25  # bytes


def keep_freed() -> bool:
    """Has the C library keep freed memory for the next tensor; returns whether it does.

    By default it returns much of it to the kernel, which must clear each page again for the next step: up to a tenth of the demo's time,
    depending on where tensors happen to lie. Does nothing where the environment configures malloc, or where malloc is not glibc's.
    """
    import ctypes  # takes longer than the rest of this package's import

    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all((mallopt(M_TRIM_THRESHOLD, MOST_KEPT), mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)))


def available_bytes() -> int:
    """Bytes of memory that are free, or that the kernel frees when asked (MemAvailable); where it does not say, all of the machine's."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
