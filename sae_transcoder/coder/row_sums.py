"""Sums of the rows of a matrix by which latents fire for which tokens: what decoding is, and the gradients of decoder and encoder.

With acts [token, latent], zero but at the chosen latents, each kind here gives four sums:
`rows`           acts @ weight                    [token, d]     of weight [latent, d]
`dots`           grad @ weight.T at the chosen    as acts        of grad [token, d]
`over_tokens`    acts.T @ values                  [latent, d]    of values [token, d]
`totals`         acts.sum(0)                      [latent]
`Bags` walks over the chosen alone, `Products` writes zeros and multiplies matrices, `Every` is for latents that all fire. `sums` decides.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sae_transcoder.coder.pieces import pieces


class LatentIndices:
    """Which latents fire for which tokens, one entry for each pair, ordered by token.

    latent: [entry]; begins: where each token's entries begin [token]; latents: how many there are; k: entries of each token, None where
    they differ.
    """

    def __init__(self, latent: Tensor, begins: Tensor, latents: int, k: int | None = None):
        self.latent, self.begins, self.latents, self.k = latent, begins, latents, k

    @classmethod
    def alike(cls, indices: Tensor, latents: int) -> "LatentIndices":
        """As many for each token: indices [token, k]."""
        k = indices.shape[1]
        return cls(indices.flatten(), torch.arange(0, indices.numel(), k, device=indices.device), latents, k)

    @property
    def tokens(self) -> int:
        """How many tokens there are."""
        return len(self.begins)

    @cached_property
    def token(self) -> Tensor:
        """The token of each entry [entry]."""
        entries = torch.arange(len(self.latent), device=self.latent.device)
        return entries // self.k if self.k else torch.searchsorted(self.begins, entries, right=True) - 1


class Sums(Protocol):
    """The four sums; see the top of this file."""

    def rows(self, acts: Tensor, weight: Tensor) -> Tensor: ...

    def dots(self, grad: Tensor, weight: Tensor) -> Tensor: ...

    def over_tokens(self, acts: Tensor, values: Tensor) -> Tensor: ...

    def totals(self, acts: Tensor) -> Tensor: ...


class Bags:
    """By embedding_bag, acts [entry]; over tokens by an inverted index, whose order does not change.

    cut: entries of a bag at most, None: any number. A GPU walks through a bag one entry after the other, so that a latent which fires on every
    token keeps all others waiting; longer bags are cut, and their partial sums added up by a second pass.
    """

    def __init__(self, chosen: LatentIndices, cut: int | None = None):
        self.chosen, self.cut = chosen, cut

    def rows(self, acts: Tensor, weight: Tensor) -> Tensor:
        return F.embedding_bag(self.chosen.latent, weight, self.chosen.begins, mode="sum", per_sample_weights=acts)

    def dots(self, grad: Tensor, weight: Tensor) -> Tensor:
        chosen = self.chosen
        product = torch.ops.aten._embedding_bag_per_sample_weights_backward  # embedding_bag's own, for its weights
        return product(grad, weight, chosen.latent, chosen.begins, chosen.token, 0)

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """Entries sorted by latent [entry], their tokens [entry], and where each latent's begin [latent]."""
        latents, order = self.chosen.latent.sort(stable=True)
        starts = torch.searchsorted(latents, torch.arange(self.chosen.latents, device=order.device))
        return order, self.chosen.token[order], starts

    @cached_property
    def cuts(self) -> tuple[Tensor, Tensor]:
        """Where each part of a bag begins [part], and which part is each latent's first [latent]."""
        assert self.cut
        order, _, starts = self.by_latent
        begins = torch.cat([starts, torch.arange(0, len(order), self.cut, device=order.device)]).sort().values
        return begins, torch.searchsorted(begins, starts)

    def _bags(self, which: Tensor, table: Tensor, weights: Tensor | None) -> Tensor:
        """For each latent the sum of the rows `which` [entry by latent] of `table`, weighted."""
        if self.cut is None:
            return F.embedding_bag(which, table, self.by_latent[2], mode="sum", per_sample_weights=weights)
        begins, firsts = self.cuts
        parts = F.embedding_bag(which, table, begins, mode="sum", per_sample_weights=weights)
        return F.embedding_bag(torch.arange(len(begins), device=begins.device), parts, firsts, mode="sum")

    def over_tokens(self, acts: Tensor, values: Tensor) -> Tensor:
        order, tokens, _ = self.by_latent
        return self._bags(tokens, values, acts[order])

    def totals(self, acts: Tensor) -> Tensor:
        return self._bags(self.by_latent[0], acts[:, None], None)[:, 0]


class Products:
    """By products of matrices of the number format `dtype`, acts [entry] written between zeros, a piece of tokens at a time.

    blocks: coders side by side, whose tokens and latents follow each other; each has its own product, and all are one piece.
    """

    def __init__(self, chosen: LatentIndices, dtype: torch.dtype, blocks: int = 1):
        self.chosen, self.dtype, self.blocks = chosen, dtype, blocks
        self.width = chosen.latents // blocks

    def _pieces(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """For each piece its tokens, its entries, and where these lie in it [entry]; where tokens have differing numbers of entries all
        entries are given, those of other tokens one place past its end, for where a token's begin is not known on the host."""
        chosen, width = self.chosen, self.width
        every = [(0, chosen.tokens)] if self.blocks > 1 else pieces(chosen.tokens, width, chosen.latent.device.type)
        for start, stop in every:
            own = slice(start * chosen.k, stop * chosen.k) if chosen.k else slice(None)
            latent = chosen.latent[own] if self.blocks == 1 else chosen.latent[own] % width
            places = (chosen.token[own] - start) * width + latent
            end = (stop - start) * width
            if not chosen.k:
                places = torch.where((places >= 0) & (places < end), places, end)
            yield slice(start, stop), own, places

    def _dense(self, acts: Tensor, tokens: slice, places: Tensor) -> Tensor:
        """acts [block, token, latent] of a piece."""
        size = (tokens.stop - tokens.start) * self.width
        values = torch.zeros(size + 1, dtype=self.dtype, device=acts.device).scatter_(0, places, acts.to(self.dtype))
        return values[:-1].view(self.blocks, -1, self.width)

    def _blocks(self, values: Tensor) -> Tensor:
        """values [row, d] in the number format, each block's rows by themselves [block, row, d]."""
        return values.to(self.dtype).unflatten(0, (self.blocks, -1))

    def rows(self, acts: Tensor, weight: Tensor) -> Tensor:
        weight = self._blocks(weight)
        found = [(self._dense(acts[own], tokens, places) @ weight).flatten(0, 1) for tokens, own, places in self._pieces()]
        return torch.cat(found).to(acts.dtype)

    def dots(self, grad: Tensor, weight: Tensor) -> Tensor:
        weight = self._blocks(weight)
        found = torch.zeros(len(self.chosen.latent), dtype=grad.dtype, device=grad.device)
        for tokens, own, places in self._pieces():
            product = (self._blocks(grad[tokens]) @ weight.mT).flatten()
            inside = places < len(product)
            found[own] += product[places.clamp(max=len(product) - 1)].where(inside, 0)
        return found

    def over_tokens(self, acts: Tensor, values: Tensor) -> Tensor:
        found = torch.zeros(self.chosen.latents, values.shape[1], dtype=acts.dtype, device=acts.device)
        for tokens, own, places in self._pieces():
            found += (self._dense(acts[own], tokens, places).mT @ self._blocks(values[tokens])).flatten(0, 1)
        return found

    def totals(self, acts: Tensor) -> Tensor:
        found = torch.zeros(self.chosen.latents, dtype=acts.dtype, device=acts.device)
        for tokens, own, places in self._pieces():
            found += self._dense(acts[own], tokens, places).sum(1, dtype=acts.dtype).flatten()
        return found


class Every:
    """By products of matrices of the number format `dtype`, for latents that all fire for all tokens: acts [block, token, latent], where the
    blocks are coders side by side, whose tokens and latents follow each other in all other tensors."""

    def __init__(self, dtype: torch.dtype, blocks: int = 1):
        self.dtype, self.blocks = dtype, blocks

    def _blocks(self, values: Tensor) -> Tensor:
        return values.to(self.dtype).unflatten(0, (self.blocks, -1))

    def rows(self, acts: Tensor, weight: Tensor) -> Tensor:
        return (acts.to(self.dtype) @ self._blocks(weight)).to(acts.dtype).flatten(0, 1)

    def dots(self, grad: Tensor, weight: Tensor) -> Tensor:
        return (self._blocks(grad) @ self._blocks(weight).mT).to(grad.dtype)

    def over_tokens(self, acts: Tensor, values: Tensor) -> Tensor:
        return (acts.to(self.dtype).mT @ self._blocks(values)).to(values.dtype).flatten(0, 1)

    def totals(self, acts: Tensor) -> Tensor:
        return acts.sum(1).flatten()


class Way(NamedTuple):
    """How a device is asked for sums."""

    products: int  # matrices are multiplied where there are at most so many latents for each that fires
    auxk: int  # the same for AuxK's
    cut: int | None  # longer bags are cut


# A CPU reads about four rows in a product in the time of one on its own (benchmarks/contenders/bare.py; what fires keeps to bags all the same,
# for its results are to stay what they were), and its threads share the bags. By arithmetic a GPU reads 500; no GPU has been measured.
WAYS = {"cpu": Way(0, 4, None), "cuda": Way(500, 500, 256)}


def sums(chosen: LatentIndices, dtype: torch.dtype, blocks: int = 1, *, auxk: bool = False) -> Sums:
    """The faster kind for these choices on the device where they lie; dtype: the number format of products; blocks: coders side by side."""
    way = WAYS[chosen.latent.device.type]
    if chosen.latents // blocks * chosen.tokens <= (way.auxk if auxk else way.products) * len(chosen.latent):
        return Products(chosen, dtype, blocks)
    return Bags(chosen, way.cut)
