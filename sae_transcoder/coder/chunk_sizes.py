"""How many pre-activations are in memory at a time: a batch is computed in chunks of tokens. Imports no torch."""

import math
from collections.abc import Iterator

# Pre-activations in a chunk. On a CPU a chunk stays in the cache, and needs no fresh pages, as large tensors do each time; on a GPU it is
# half a GB in bfloat16, large enough for whole waves of its blocks.
CHUNK_SIZE = {"cpu": 2**21, "cuda": 2**28}
# Pre-activations of one coder in a batch up to which its kernels take less time than their launches, so that several coders are better
# computed as one: by arithmetic some 60 launches of 5 microseconds; this has not been measured. A CPU launches nothing.
SMALL_BATCH = {"cpu": 0, "cuda": 2**24}


def token_chunks(num_tokens: int, num_latents: int, device_type: str) -> Iterator[tuple[int, int]]:
    """Yields each chunk's first token and the one after its last. The sizes of chunks differ by one token at most."""
    count = max(1, math.ceil(num_tokens / max(1, CHUNK_SIZE[device_type] // num_latents)))
    for i in range(count):
        yield num_tokens * i // count, num_tokens * (i + 1) // count
