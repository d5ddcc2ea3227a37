"""How many pre-activations are in memory at a time: a batch is worked on in pieces of tokens. Imports no torch."""

import math
from collections.abc import Iterator

# Numbers in a piece. On a CPU a piece stays in the cache, and needs no fresh pages, as large tensors do each time; on a GPU it is half a GB
# in bfloat16, large enough for whole waves of its blocks.
PIECE = {"cpu": 2**21, "cuda": 2**28}
# Pre-activations of one coder in a batch up to which its kernels take less time than their launches, so that coders are better computed as
# one: by arithmetic some 60 launches of 5 microseconds; no GPU has been measured. A CPU launches nothing.
SMALL = {"cpu": 0, "cuda": 2**24}


def pieces(tokens: int, latents: int, device: str) -> Iterator[tuple[int, int]]:
    """First token of each piece and the one after its last, for so many latents on a device of this type; pieces differ by one token at most."""
    count = max(1, math.ceil(tokens / max(1, PIECE[device] // latents)))
    for i in range(count):
        yield tokens * i // count, tokens * (i + 1) // count
