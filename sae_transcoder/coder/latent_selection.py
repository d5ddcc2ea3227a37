"""Which latents are selected for a token: those of the largest pre-activations, of which only the selected are kept."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sae_transcoder.coder.chunk_sizes import token_chunks

Selector = Callable[[Tensor], tuple[Tensor, ...]]
"""What is kept of pre-activations [token, latent]: tensors whose first axis is the token."""


class TwoStages(NamedTuple):
    """When the k largest are looked for in two stages, and of how many latents the first stage takes the maximum."""

    group: int
    min_k: int
    min_latents: int


# On a CPU torch's top-k moves whole rows about; on a GPU it reads rows of many latents several times (not measured on one).
TWO_STAGES = {"cpu": TwoStages(8, 16, 0), "cuda": TwoStages(32, 1, 2**14)}


def top_k(preacts: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of each row of `preacts` [token, latent] and their indices, both [token, k], in no order.

    Where it pays, in two stages: latents form columns of `group`. Only the k columns with the largest maxima can hold a top-k value, so
    only these are searched.
    """
    latents = preacts.shape[1]
    group, min_k, min_latents = TWO_STAGES[preacts.device.type]
    if k < min_k or latents < max(min_latents, 2 * group * k) or latents % group:
        return preacts.topk(k, dim=-1, sorted=False)
    width = latents // group
    columns = preacts.unflatten(1, (group, width)).amax(1).topk(k, dim=-1, sorted=False).indices
    candidates = (columns[:, None] + torch.arange(0, latents, width, device=preacts.device)[:, None]).flatten(1)
    values, places = preacts.gather(1, candidates).topk(k, dim=-1, sorted=False)
    return values, candidates.gather(1, places)


def group_max(preacts: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The largest value of each of k equal groups of latents and its index, both [token, k]."""
    groups = preacts.unflatten(-1, (k, -1))
    values, places = groups.max(dim=-1)
    return values, places + torch.arange(0, preacts.shape[1], groups.shape[-1], device=preacts.device)


def select_preacts(inputs: Tensor, weight: Tensor, bias: Tensor, selectors: Sequence[Selector]) -> list[tuple[Tensor, ...]]:
    """What each selector keeps of the pre-activations inputs @ weight.T + bias, which are computed in chunks of tokens.

    inputs: [token, d_in]; weight: [latent, d_in].
    """
    chunks: list[list[tuple[Tensor, ...]]] = []
    for start, stop in token_chunks(len(inputs), len(weight), inputs.device.type):
        preacts = F.linear(inputs[start:stop], weight, bias)
        chunks.append([selector(preacts) for selector in selectors])
    return [tuple(torch.cat(tensors) for tensors in zip(*of_selector, strict=True)) for of_selector in zip(*chunks, strict=True)]
