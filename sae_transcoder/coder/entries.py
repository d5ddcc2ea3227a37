"""Entries: pairs of a token and a latent that fires for it, of which tokens may have differing numbers."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sae_transcoder.coder.chunk_sizes import token_chunks
from sae_transcoder.coder.sparse_products import LatentIndices


class Entries(NamedTuple):
    """Entries ordered by token: three tensors [entry]."""

    preacts: Tensor
    tokens: Tensor
    latents: Tensor

    def where(self, mask: Tensor) -> "Entries":
        """The entries of a mask [entry]. Waits for a GPU, to learn their number."""
        places = mask.nonzero()[:, 0]
        return Entries(*(values[places] for values in self))

    def indices(self, num_tokens: int, num_latents: int) -> LatentIndices:
        """The same as products take them."""
        return LatentIndices.from_tokens(self.latents, self.tokens, num_tokens, num_latents)

    def pieces(self, sizes: Sequence[int]) -> list["Entries"]:
        """The entries of so many tokens, of so many after them, and so on; each counts its tokens from 0. Waits for a GPU."""
        if len(sizes) <= 1:
            return [self] * len(sizes)
        starts = torch.tensor([0, *sizes], device=self.tokens.device).cumsum(0)
        ends = torch.searchsorted(self.tokens, starts).tolist()
        pieces = (Entries(*(values[a:b] for values in self)) for a, b in pairwise(ends))
        return [piece._replace(tokens=piece.tokens - start) for piece, start in zip(pieces, starts, strict=False)]


def joined(parts: Sequence[Entries]) -> Entries:
    """Entries one after the other."""
    return parts[0] if len(parts) == 1 else Entries(*map(torch.cat, zip(*parts, strict=True)))


def entries_above(inputs: Tensor, weight: Tensor, bias: Tensor, bound: Tensor) -> Iterator[Entries]:
    """Yields, a chunk of tokens at a time, the entries whose pre-activations inputs [token, d_in] @ weight.T [latent, d_in] + bias lie above
    `bound`, a scalar or [latent]; their preacts are float32. Waits for a GPU, to learn their number."""
    for start, stop in token_chunks(len(inputs), len(weight), inputs.device.type):
        preacts = F.linear(inputs[start:stop], weight, bias)
        tokens, latents = (preacts > bound).nonzero(as_tuple=True)
        yield Entries(preacts[tokens, latents].float(), tokens + start, latents)
