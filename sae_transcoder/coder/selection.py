"""Which latents fire for a token: the largest of its pre-activations, and of those the wanted ones alone are kept."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sae_transcoder.coder.pieces import pieces

Choice = Callable[[Tensor], tuple[Tensor, ...]]
"""What is kept of pre-activations [token, latent]: tensors whose first axis is the token."""


class TwoStages(NamedTuple):
    """When the columns of the largest maxima are looked for first, each the maximum of `group` latents."""

    group: int
    least_k: int
    least_latents: int


# On a CPU torch's top-k moves whole rows about; on a GPU it reads rows of many latents several times (not measured on one).
TWO_STAGES = {"cpu": TwoStages(8, 16, 0), "cuda": TwoStages(32, 1, 2**14)}


def largest(preacts: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row of `preacts` [token, latent] and which these are, both [token, k], in no order.

    Where it pays, the columns of a row's k largest maxima are looked at alone: what is among the k largest is the maximum of its column or
    below it, so no other column has any.
    """
    latents = preacts.shape[1]
    group, least_k, least_latents = TWO_STAGES[preacts.device.type]
    if k < least_k or latents < max(least_latents, 2 * group * k) or latents % group:
        return preacts.topk(k, dim=-1, sorted=False)
    width = latents // group
    columns = preacts.unflatten(1, (group, width)).amax(1).topk(k, dim=-1, sorted=False).indices
    candidates = (columns[:, None] + torch.arange(0, latents, width, device=preacts.device)[:, None]).flatten(1)
    values, places = preacts.gather(1, candidates).topk(k, dim=-1, sorted=False)
    return values, candidates.gather(1, places)


def largest_of_groups(preacts: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The largest of each of k equal groups of latents, and which these are, both [token, k]."""
    groups = preacts.unflatten(-1, (k, -1))
    values, places = groups.max(dim=-1)
    return values, places + torch.arange(0, preacts.shape[1], groups.shape[-1], device=preacts.device)


def select(given: Tensor, weight: Tensor, bias: Tensor, choices: Sequence[Choice]) -> list[tuple[Tensor, ...]]:
    """What each of `choices` keeps of the pre-activations given @ weight.T + bias, of given [token, d_in], weight [latent, d_in], a piece of
    tokens at a time."""
    kept: list[list[tuple[Tensor, ...]]] = []
    for start, stop in pieces(len(given), len(weight), given.device.type):
        preacts = F.linear(given[start:stop], weight, bias)
        kept.append([choose(preacts) for choose in choices])
    return [tuple(torch.cat(parts) for parts in zip(*own, strict=True)) for own in zip(*kept, strict=True)]
