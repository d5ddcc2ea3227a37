"""Products of sparse activations with dense matrices: decoding, and the gradients of decoder and encoder.

With acts [token, latent], zero except at the selected latents, each class here computes four products:
`matmul`             acts @ weight                             [token, d]     of weight [latent, d]
`sampled_matmul`     grad @ weight.T at the selected latents   as acts        of grad [token, d]
`transposed_matmul`  acts.T @ values                           [latent, d]    of values [token, d]
`sum_over_tokens`    acts.sum(0)                               [latent]
`EmbeddingBags` reads the selected rows only, `DenseProducts` fills in zeros and multiplies matrices, `AllLatents` is for latents that are
selected for every token. `fastest_products` decides.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sae_transcoder.coder.chunk_sizes import token_chunks


class LatentIndices:
    """Which latents are selected for which tokens: one entry for each pair, ordered by token.

    latents: the latent of each entry [entry]; token_starts: the first entry of each token [token]; k: entries of each token, None where
    their numbers differ; tokens: the token of each entry [entry], where it is known already.
    """

    def __init__(
        self, latents: Tensor, token_starts: Tensor, num_latents: int, k: int | None = None, *, tokens: Tensor | None = None
    ):
        self.latents, self.token_starts, self.num_latents, self.k = latents, token_starts, num_latents, k
        if tokens is not None:
            self.tokens = tokens

    @classmethod
    def from_top_k(cls, indices: Tensor, num_latents: int) -> "LatentIndices":
        """The entries of equally many latents for each token: indices [token, k]."""
        k = indices.shape[1]
        return cls(indices.flatten(), torch.arange(0, indices.numel(), k, device=indices.device), num_latents, k)

    @classmethod
    def from_tokens(cls, latents: Tensor, tokens: Tensor, num_tokens: int, num_latents: int) -> "LatentIndices":
        """The entries of differing numbers of latents for each of so many tokens: latents and tokens [entry], tokens in order."""
        starts = torch.searchsorted(tokens, torch.arange(num_tokens, device=tokens.device))
        return cls(latents, starts, num_latents, tokens=tokens)

    @property
    def num_tokens(self) -> int:
        """The number of tokens, those without entries included."""
        return len(self.token_starts)

    @cached_property
    def tokens(self) -> Tensor:
        """The token of each entry [entry]."""
        entries = torch.arange(len(self.latents), device=self.latents.device)
        return entries // self.k if self.k else torch.searchsorted(self.token_starts, entries, right=True) - 1


class SparseProducts(Protocol):
    """The four products; see the top of this file."""

    def matmul(self, acts: Tensor, weight: Tensor) -> Tensor: ...

    def sampled_matmul(self, grad: Tensor, weight: Tensor) -> Tensor: ...

    def transposed_matmul(self, acts: Tensor, values: Tensor) -> Tensor: ...

    def sum_over_tokens(self, acts: Tensor) -> Tensor: ...


class EmbeddingBags:
    """Computes with embedding_bag, acts [entry]; sums over tokens by an inverted index, always in the same order.

    max_bag: entries of a bag at most, None for any number. A GPU adds the entries of a bag one after the other, so a latent that fires on
    every token keeps all others waiting; longer bags are split, and a second pass adds their partial sums.
    """

    def __init__(self, indices: LatentIndices, max_bag: int | None = None):
        self.indices, self.max_bag = indices, max_bag

    def matmul(self, acts: Tensor, weight: Tensor) -> Tensor:
        return F.embedding_bag(self.indices.latents, weight, self.indices.token_starts, mode="sum", per_sample_weights=acts)

    def sampled_matmul(self, grad: Tensor, weight: Tensor) -> Tensor:
        indices = self.indices
        product = torch.ops.aten._embedding_bag_per_sample_weights_backward  # what embedding_bag itself computes for its weights
        return product(grad, weight, indices.latents, indices.token_starts, indices.tokens, 0)

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """Entries sorted by latent [entry], their tokens [entry], and the first of each latent [latent]."""
        latents, order = self.indices.latents.sort(stable=True)
        starts = torch.searchsorted(latents, torch.arange(self.indices.num_latents, device=order.device))
        return order, self.indices.tokens[order], starts

    @cached_property
    def split_bags(self) -> tuple[Tensor, Tensor]:
        """The first entry of each part of a bag [part], and the first part of each latent [latent]."""
        assert self.max_bag
        order, _, starts = self.by_latent
        part_starts = torch.cat([starts, torch.arange(0, len(order), self.max_bag, device=order.device)]).sort().values
        return part_starts, torch.searchsorted(part_starts, starts)

    def _sum_by_latent(self, rows: Tensor, table: Tensor, weights: Tensor | None) -> Tensor:
        """For each latent the weighted sum of its `rows` [entry by latent] of `table`."""
        if self.max_bag is None:
            return F.embedding_bag(rows, table, self.by_latent[2], mode="sum", per_sample_weights=weights)
        part_starts, first_parts = self.split_bags
        sums = F.embedding_bag(rows, table, part_starts, mode="sum", per_sample_weights=weights)
        return F.embedding_bag(torch.arange(len(part_starts), device=part_starts.device), sums, first_parts, mode="sum")

    def transposed_matmul(self, acts: Tensor, values: Tensor) -> Tensor:
        order, tokens, _ = self.by_latent
        return self._sum_by_latent(tokens, values, acts[order])

    def sum_over_tokens(self, acts: Tensor) -> Tensor:
        return self._sum_by_latent(self.by_latent[0], acts[:, None], None)[:, 0]


class DenseProducts:
    """Multiplies matrices of the number format `dtype`, in which acts [entry] lie between zeros, a chunk of tokens at a time.

    num_coders: coders side by side, whose tokens and latents are concatenated; each has its own product, and all are one chunk.
    """

    def __init__(self, indices: LatentIndices, dtype: torch.dtype, num_coders: int = 1):
        self.indices, self.dtype, self.num_coders = indices, dtype, num_coders
        self.width = indices.num_latents // num_coders  # latents of one coder

    def _chunks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yields each chunk's tokens, its entries, and where each entry lies in the chunk's flat matrix [entry].

        Where tokens have differing numbers of entries, each chunk has all entries, those of other tokens one place past its end: the host
        does not know where a token's entries start.
        """
        indices, width = self.indices, self.width
        whole_batch = [(0, indices.num_tokens)]
        chunks = whole_batch if self.num_coders > 1 else token_chunks(indices.num_tokens, width, indices.latents.device.type)
        for start, stop in chunks:
            entries = slice(start * indices.k, stop * indices.k) if indices.k else slice(None)
            latents = indices.latents[entries] if self.num_coders == 1 else indices.latents[entries] % width
            places = (indices.tokens[entries] - start) * width + latents
            end = (stop - start) * width
            if not indices.k:
                places = torch.where((places >= 0) & (places < end), places, end)
            yield slice(start, stop), entries, places

    def _dense(self, acts: Tensor, tokens: slice, places: Tensor) -> Tensor:
        """The acts of a chunk with the zeros between them, [coder, token, latent]."""
        size = (tokens.stop - tokens.start) * self.width
        flat = torch.zeros(size + 1, dtype=self.dtype, device=acts.device).scatter_(0, places, acts.to(self.dtype))
        return flat[:-1].view(self.num_coders, -1, self.width)

    def _by_coder(self, values: Tensor) -> Tensor:
        """values [row, d] in the number format, [coder, row, d]."""
        return values.to(self.dtype).unflatten(0, (self.num_coders, -1))

    def matmul(self, acts: Tensor, weight: Tensor) -> Tensor:
        weight = self._by_coder(weight)
        out = [(self._dense(acts[entries], tokens, places) @ weight).flatten(0, 1) for tokens, entries, places in self._chunks()]
        return torch.cat(out).to(acts.dtype)

    def sampled_matmul(self, grad: Tensor, weight: Tensor) -> Tensor:
        weight = self._by_coder(weight)
        out = torch.zeros(len(self.indices.latents), dtype=grad.dtype, device=grad.device)
        for tokens, entries, places in self._chunks():
            product = (self._by_coder(grad[tokens]) @ weight.mT).flatten()
            inside = places < len(product)
            out[entries] += product[places.clamp(max=len(product) - 1)].where(inside, 0)
        return out

    def transposed_matmul(self, acts: Tensor, values: Tensor) -> Tensor:
        out = torch.zeros(self.indices.num_latents, values.shape[1], dtype=acts.dtype, device=acts.device)
        for tokens, entries, places in self._chunks():
            out += (self._dense(acts[entries], tokens, places).mT @ self._by_coder(values[tokens])).flatten(0, 1)
        return out

    def sum_over_tokens(self, acts: Tensor) -> Tensor:
        out = torch.zeros(self.indices.num_latents, dtype=acts.dtype, device=acts.device)
        for tokens, entries, places in self._chunks():
            out += self._dense(acts[entries], tokens, places).sum(1, dtype=acts.dtype).flatten()
        return out


class AllLatents:
    """Multiplies matrices of the number format `dtype`, for latents that are selected for every token: acts [coder, token, latent].

    num_coders: coders side by side, whose tokens and latents are concatenated in all other tensors.
    """

    def __init__(self, dtype: torch.dtype, num_coders: int = 1):
        self.dtype, self.num_coders = dtype, num_coders

    def _by_coder(self, values: Tensor) -> Tensor:
        return values.to(self.dtype).unflatten(0, (self.num_coders, -1))

    def matmul(self, acts: Tensor, weight: Tensor) -> Tensor:
        return (acts.to(self.dtype) @ self._by_coder(weight)).to(acts.dtype).flatten(0, 1)

    def sampled_matmul(self, grad: Tensor, weight: Tensor) -> Tensor:
        return (self._by_coder(grad) @ self._by_coder(weight).mT).to(grad.dtype)

    def transposed_matmul(self, acts: Tensor, values: Tensor) -> Tensor:
        return (acts.to(self.dtype).mT @ self._by_coder(values)).to(values.dtype).flatten(0, 1)

    def sum_over_tokens(self, acts: Tensor) -> Tensor:
        return acts.sum(1).flatten()


class ProductRules(NamedTuple):
    """How a kind of device computes products."""

    dense_up_to: int  # DenseProducts where there are at most so many latents for each selected one
    dense_many_up_to: int  # the same where many may be selected: AuxK, JumpReLU
    max_bag: int | None  # of EmbeddingBags


# A CPU reads about four rows in a product in the time of one on its own (benchmarks/bare.py; the latents that fire use bags nevertheless,
# so that results do not change), and its threads share the bags. By arithmetic a GPU reads 500; this has not been measured.
PRODUCT_RULES = {"cpu": ProductRules(0, 4, None), "cuda": ProductRules(500, 500, 256)}


def fastest_products(indices: LatentIndices, dtype: torch.dtype, num_coders: int = 1, *, many: bool = False) -> SparseProducts:
    """The faster of EmbeddingBags and DenseProducts on the device of the indices; dtype: the number format of dense products; many: whether a
    large share of the latents may be selected."""
    rules = PRODUCT_RULES[indices.latents.device.type]
    dense_up_to = rules.dense_many_up_to if many else rules.dense_up_to
    if indices.num_latents // num_coders * indices.num_tokens <= dense_up_to * len(indices.latents):
        return DenseProducts(indices, dtype, num_coders)
    return EmbeddingBags(indices, rules.max_bag)
