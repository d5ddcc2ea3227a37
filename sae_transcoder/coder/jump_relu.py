"""JumpReLU: a latent fires where its pre-activation lies above a threshold of its own, which is trained.

The firing of a latent is a step, whose slope is zero: thresholds get their gradients from an estimate of the slope of the expected loss, by
the pre-activations within half a bandwidth of the threshold, on both sides. Other weights get the exact gradients of the latents that fire.
Source: Rajamanoharan et al. 2024, arXiv 2407.14435, equations 11 and 12, with the threshold itself as the parameter, not its logarithm.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sae_transcoder.coder.batch_top_k import Entries
from sae_transcoder.coder.chunk_sizes import token_chunks
from sae_transcoder.coder.sparse_products import SparseProducts

TANH_SCALE = 4.0  # Anthropic 2025, Circuits Updates, January


def entries_near_or_above(inputs: Tensor, weight: Tensor, bias: Tensor, thresholds: Tensor) -> Entries:
    """The entries of the pre-activations inputs [token, d_in] @ weight.T [latent, d_in] + bias above thresholds [latent], which lie half a
    bandwidth below those that are trained. Waits for a GPU, to learn their number."""
    found = []
    for start, stop in token_chunks(len(inputs), len(weight), inputs.device.type):
        preacts = F.linear(inputs[start:stop], weight, bias)
        tokens, latents = (preacts > thresholds).nonzero(as_tuple=True)
        found.append(Entries(preacts[tokens, latents].float(), tokens + start, latents))
    return found[0] if len(found) == 1 else Entries(*map(torch.cat, zip(*found, strict=True)))


def window(preacts: Tensor, thresholds: Tensor, bandwidth: float) -> Tensor:
    """1 / bandwidth at entries [entry] within half a bandwidth of their thresholds, 0 elsewhere."""
    return ((preacts - thresholds).abs() < bandwidth / 2).to(preacts.dtype) / bandwidth


class JumpReLU(torch.autograd.Function):
    """Activations [entry] that are zero up to their latent's threshold."""

    @staticmethod
    def forward(
        ctx: Any, acts: Tensor, threshold: Tensor, preacts: Tensor, latents: Tensor, products: SparseProducts, bandwidth: float
    ) -> Tensor:
        """acts: ReLU of preacts [entry]; threshold: [latent]; latents: the latent of each entry; products: of the entries."""
        own = threshold[latents]
        fires = preacts > own
        ctx.save_for_backward(fires, own * window(preacts, own, bandwidth))
        ctx.products = products
        return acts * fires

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        fires, slope = ctx.saved_tensors
        return grads[0] * fires, -ctx.products.sum_over_tokens(slope * grads[0]), None, None, None, None


class ActiveLatents(torch.autograd.Function):
    """The number of latents that fire for each token, whose slope is estimated for the thresholds."""

    @staticmethod
    def forward(
        ctx: Any,
        threshold: Tensor,
        preacts: Tensor,
        tokens: Tensor,
        latents: Tensor,
        num_tokens: int,
        products: SparseProducts,
        bandwidth: float,
    ) -> Tensor:
        """threshold: [latent]; preacts, tokens, latents: of each entry; -> [token]."""
        own = threshold[latents]
        ctx.save_for_backward(window(preacts, own, bandwidth), tokens)
        ctx.products = products
        return preacts.new_zeros(num_tokens).index_add_(0, tokens, (preacts > own).to(preacts.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        slope, tokens = ctx.saved_tensors
        return -ctx.products.sum_over_tokens(slope * grads[0][tokens]), None, None, None, None, None, None
