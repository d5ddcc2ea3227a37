"""JumpReLU: a latent fires where its pre-activation lies above a threshold of its own, which is trained.

The firing of a latent is a step, whose slope is zero: thresholds get their gradients from an estimate of the slope of the expected loss, by
the pre-activations within half a bandwidth of the threshold, on both sides. All else gets the exact gradients of the latents that fire.
Source: Rajamanoharan et al. 2024, arXiv 2407.14435, equations 11 and 12, with the threshold itself as the parameter, not its logarithm.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_transcoder.coder.entries import Entries, entries_above, joined
from sae_transcoder.coder.sparse_products import SparseProducts


class Near(NamedTuple):
    """Entries within half a bandwidth of their latents' thresholds, whether they fire or not."""

    entries: Entries
    thresholds: Tensor  # of each entry [entry]
    bandwidth: float
    products: SparseProducts
    num_firing: Tensor  # of each token, how many latents fire, near their thresholds or not [token]

    def threshold_gradient(self, slope: Tensor) -> Tensor:
        """The gradient of thresholds [latent], from that by the step of each entry [entry]."""
        return -self.products.sum_over_tokens(slope / self.bandwidth)


def entries_by_threshold(
    inputs: Tensor, weight: Tensor, bias: Tensor, threshold: Tensor, bandwidth: float
) -> tuple[Entries, Entries]:
    """The entries of the pre-activations inputs [token, d_in] @ weight.T [latent, d_in] + bias that lie above threshold [latent], and those
    that lie within half a bandwidth of it. Waits for a GPU, to learn their numbers."""
    firing, near = [], []
    for found in entries_above(inputs, weight, bias, threshold - bandwidth / 2):
        own = threshold[found.latents]
        firing.append(found.where(found.preacts > own))
        near.append(found.where(found.preacts < own + bandwidth / 2))
    return joined(firing), joined(near)


class ThresholdsOfOutput(torch.autograd.Function):
    """Passes a reconstruction on, and its gradient also to the thresholds."""

    @staticmethod
    def forward(ctx: Any, decoded: Tensor, threshold: Tensor, decoder: Tensor, near: Near) -> Tensor:
        """decoded: [token, d]; threshold: [latent]; decoder: [latent, d]."""
        ctx.save_for_backward(decoder)
        ctx.near = near
        return decoded.view_as(decoded)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (decoder,), near = ctx.saved_tensors, ctx.near
        of_acts = near.products.sampled_matmul(grads[0].contiguous(), decoder)
        return grads[0], near.threshold_gradient(near.thresholds * of_acts), None, None


class ThresholdsOfActivations(torch.autograd.Function):
    """The activations of near entries [entry], whose gradient reaches the thresholds alone."""

    @staticmethod
    def forward(ctx: Any, threshold: Tensor, near: Near) -> Tensor:
        ctx.near = near
        return near.entries.preacts * (near.entries.preacts > near.thresholds)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.near.threshold_gradient(ctx.near.thresholds * grads[0]), None


class ThresholdsOfCounts(torch.autograd.Function):
    """The number of latents that fire for each token [token], whose gradient reaches the thresholds alone."""

    @staticmethod
    def forward(ctx: Any, threshold: Tensor, near: Near) -> Tensor:
        ctx.near = near
        return near.num_firing.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.near.threshold_gradient(grads[0][ctx.near.entries.tokens]), None
