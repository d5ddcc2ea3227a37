"""How the C library allocates the memory of tensors on a CPU."""

import os

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
