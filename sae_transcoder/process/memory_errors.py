"""How a lack of memory shows, on a device or on the CPU."""

# Messages of errors without a class of their own: from torch's allocator on a CPU, CUDA and Triton, cuBLAS and similar libraries, and cuBLAS
# where no memory is left to initialise it.
NO_MEMORY = ("t allocate memory", "bad_alloc", "out of memory", "STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED")


def is_out_of_memory(error: Exception) -> bool:
    """Whether the error says that a device or the CPU has no memory left."""
    import torch

    has_message = isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)
    return has_message or isinstance(error, torch.OutOfMemoryError | MemoryError)
