"""The C library's memory on the host: what tensors on a CPU are made of."""

import ctypes
import os

# glibc's mallopt: numbers of its parameters (malloc.h), the largest values that it takes.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MOST_KEPT, LARGEST_KEPT = 2**31 - 1, 2**25  # bytes


def keep_freed() -> bool:
    """Has the C library keep what is freed, for the next tensor; whether it does.

    By itself it gives much of it back to the kernel, which clears every page again that the next step needs: of the demo's steps up to a tenth
    of the time, by how the tensors happen to lie. Does nothing where the environment says what malloc should do, or where it is not glibc's.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all((mallopt(M_TRIM_THRESHOLD, MOST_KEPT), mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)))
