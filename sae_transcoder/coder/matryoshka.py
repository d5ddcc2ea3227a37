"""Matryoshka coders: nested dictionaries, of which each reconstructs the target by itself.

A dictionary is the first so many latents. Each latent is decoded once, into the part that its smallest dictionary adds to the one before; the
dictionaries' reconstructions are running sums of these parts. Source: Bussmann et al. 2025, arXiv 2503.17547.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sae_transcoder.coder.sparse_products import LatentIndices


def part_of_latents(widths: Sequence[int], device: torch.device) -> Tensor:
    """The number of the smallest dictionary that each latent is in, [latent]; widths: latents of each dictionary, rising to all."""
    return torch.cat([torch.full((b - a,), i, device=device) for i, (a, b) in enumerate(pairwise([0, *widths]))])


def parts_of(indices: LatentIndices, part_of_latent: Tensor, num_parts: int) -> LatentIndices:
    """The same entries, whose tokens' latents lie in order, with a token for each part of a token: token * num_parts + part."""
    parts = indices.tokens * num_parts + part_of_latent[indices.latents]
    return LatentIndices.from_tokens(indices.latents, parts, indices.num_tokens * num_parts, indices.num_latents)


class NestedErrors(torch.autograd.Function):
    """The reconstruction by all latents, and the sum of squared errors of each dictionary's."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, base: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """parts: what each part decodes to [token, part, d], whose memory is taken over; base: what all have in common, bias and skip, [d] or
        [token, d]; target: [token, d] -> the largest dictionary's reconstruction [token, d], squared errors [dictionary], and errors
        [token, dictionary, d], which pass no gradient."""
        errors = parts.detach()
        before = target - base
        for part in errors.unbind(1):
            before = torch.sub(before, part, out=part)
        squared = torch.stack([torch.linalg.vector_norm(part).square() for part in errors.unbind(1)])
        ctx.save_for_backward(errors)
        ctx.base_shape = base.shape
        ctx.mark_non_differentiable(errors)
        ctx.set_materialize_grads(False)
        return target - before, squared, errors

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (errors,) = ctx.saved_tensors
        grad_output, grad_squared, _ = grads
        gradient = torch.zeros_like(errors) if grad_squared is None else errors * (-2 * grad_squared)[:, None]
        parts = gradient.unbind(1)
        if grad_output is not None:
            parts[-1].add_(grad_output)
        for larger, part in pairwise(reversed(parts)):  # a part is in its own dictionary's reconstruction and in all larger ones
            part.add_(larger)
        return gradient, parts[0] if len(ctx.base_shape) == 2 else parts[0].sum(0), None
