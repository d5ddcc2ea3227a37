"""A coder whose latents fire above trained thresholds of their own (JumpReLU), with the sparsity losses that train these."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sae_transcoder.coder.corrected_coder import CorrectedCoder, Selections, product_dtype
from sae_transcoder.coder.jump_relu import (
    Near,
    ThresholdsOfActivations,
    ThresholdsOfCounts,
    ThresholdsOfOutput,
    entries_by_threshold,
)
from sae_transcoder.coder.sparse_products import fastest_products
from sae_transcoder.coder.trained_coder import TrainedCoder
from sae_transcoder.config import JumpReLULoss

TANH_SCALE = 4.0  # Anthropic 2025, Circuits Updates, January


class JumpReLUCoder(CorrectedCoder):
    """`cfg.k` is what the quadratic loss aims at. The parameter `threshold` is float32 [latent], and never below zero."""

    def __init__(self, *args: Any, bandwidth: float, init_threshold: float, loss: JumpReLULoss, **kwargs: Any):
        """bandwidth: of the window that thresholds see; init_threshold: each latent's at the start; the rest as CorrectedCoder takes it."""
        super().__init__(*args, **kwargs)
        self.bandwidth, self.sparsity_loss = bandwidth, loss
        self.threshold = nn.Parameter(torch.full((self.num_latents,), init_threshold, dtype=torch.float32, device=self.device))

    def trained(self) -> TrainedCoder:
        return TrainedCoder.of(self, threshold=self.threshold.detach().clamp(min=0), trained_activation="jumprelu")

    @torch.no_grad()
    def project(self, iterates: Iterable[Tensor]) -> None:
        """Raises thresholds below zero to zero: there a latent would fire with a negative activation. iterates: `threshold` [latent], and what
        else its optimizer moves in its place."""
        for thresholds in iterates:
            thresholds.clamp_(min=0)

    @torch.no_grad()
    def selections(self, centered_input: Tensor, dead: Sequence[Tensor], max_auxk: int) -> Selections:
        """The latents that fire for centered_input [token, d_in], those near their thresholds, and AuxK's."""
        inputs, weight, bias = self.product_inputs(centered_input)
        firing, near = entries_by_threshold(inputs, weight, bias, self.threshold, self.bandwidth)
        shape = len(inputs), self.num_latents
        num_firing = torch.zeros(len(inputs), device=inputs.device).index_add_(0, firing.tokens, torch.ones_like(firing.preacts))
        products = fastest_products(near.indices(*shape), product_dtype(inputs.device), many=True)
        return Selections(
            main=self.main_selection(firing.preacts, firing.indices(*shape), may_be_dense=True),
            indices=firing.latents,
            auxk=self.auxk_selections(inputs, weight, bias, dead, max_auxk),
            near=Near(near, self.threshold[near.latents], self.bandwidth, products, num_firing),
        )

    def train_thresholds(self, decoded: Tensor, selections: Selections) -> Tensor:
        return ThresholdsOfOutput.apply(decoded, self.threshold, self.W_dec, selections.near)

    def sparsity(self, acts: Tensor, selections: Selections) -> Tensor:
        """The sparsity loss in the definition of SAELens's JumpReLU trainer, summed over tokens."""
        near = selections.near
        if self.sparsity_loss == JumpReLULoss.tanh:
            assert self.W_dec is not None
            assert near is not None
            norms = TANH_SCALE * self.W_dec.norm(dim=1)
            of_thresholds = torch.tanh(
                ThresholdsOfActivations.apply(self.threshold, near) * norms.detach()[near.entries.latents]
            ).sum()
            return torch.tanh(acts * norms[selections.indices]).sum() + of_thresholds - of_thresholds.detach()
        l0 = ThresholdsOfCounts.apply(self.threshold, near)
        return l0.sum() if self.sparsity_loss == JumpReLULoss.step else (2 / self.cfg.k * (l0 - self.cfg.k) ** 2).sum()
