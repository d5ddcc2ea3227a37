"""How too little memory shows, on a device or on the CPU."""

# What is said without an exception of its own: by torch's allocator on a CPU, by CUDA and Triton, by cuBLAS and its like, and by cuBLAS where
# there is no memory to begin with.
NO_MEMORY = ("t allocate memory", "bad_alloc", "out of memory", "STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED")


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the CPU had no more memory to give."""
    import torch

    said = isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)
    return said or isinstance(error, torch.OutOfMemoryError | MemoryError)
