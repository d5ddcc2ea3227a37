"""Matryoshka coders: nested dictionaries, of which each reconstructs the target by itself.

A dictionary is the first so many latents. Each latent is decoded once, into the part that its smallest dictionary adds to the one before; the
dictionaries' reconstructions are running sums of these parts. Source: Bussmann et al. 2025, arXiv 2503.17547.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sae_transcoder.coder.sparse_products import LatentIndices


def parts_of(indices: LatentIndices, widths: Sequence[int]) -> LatentIndices:
    """The same entries, whose tokens' latents lie in order, with a token for each part of a token: token * number of widths + part."""
    ends = torch.tensor(widths, device=indices.latents.device)
    parts = indices.tokens * len(widths) + torch.searchsorted(ends, indices.latents, right=True)
    numbers = torch.arange(indices.num_tokens * len(widths), device=parts.device)
    return LatentIndices(indices.latents, torch.searchsorted(parts, numbers), indices.num_latents, tokens=parts)


class NestedErrors(torch.autograd.Function):
    """The reconstruction by all latents, and the sum of squared errors of each dictionary's."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, base: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """parts: what each part decodes to [token, part, d]; base: what all have in common, bias and skip, [d] or [token, d]; target:
        [token, d] -> the largest dictionary's reconstruction [token, d], squared errors [dictionary], and errors [token, dictionary, d],
        which pass no gradient."""
        outputs = parts.cumsum(1) + base.unsqueeze(-2)
        errors = target[:, None] - outputs
        ctx.save_for_backward(errors)
        ctx.base_shape = base.shape
        ctx.mark_non_differentiable(errors)
        ctx.set_materialize_grads(False)
        return outputs[:, -1].clone(), errors.pow(2).sum((0, 2)), errors

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (errors,) = ctx.saved_tensors
        grad_output, grad_squared, _ = grads
        of_outputs = torch.zeros_like(errors) if grad_squared is None else errors * (-2 * grad_squared)[:, None]
        if grad_output is not None:
            of_outputs[:, -1] += grad_output
        # A part is in its own dictionary's reconstruction and in all larger ones.
        of_parts = of_outputs.flip(1).cumsum(1).flip(1)
        of_base = of_parts[:, 0]
        return of_parts, of_base if len(ctx.base_shape) == 2 else of_base.sum(0), None
