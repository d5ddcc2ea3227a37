"""A coder whose latents fire above trained thresholds of their own (JumpReLU), with the sparsity losses that train these."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sae_transcoder.coder.autograd_functions import Selection
from sae_transcoder.coder.corrected_coder import CorrectedCoder, Selections
from sae_transcoder.coder.jump_relu import TANH_SCALE, ActiveLatents, JumpReLU, entries_near_or_above
from sae_transcoder.coder.sparse_products import LatentIndices
from sae_transcoder.coder.trained_coder import TrainedCoder
from sae_transcoder.config import JumpReLULoss


class JumpReLUCoder(CorrectedCoder):
    """`cfg.k` is what the quadratic loss aims at. The parameter `threshold` is float32 [latent], and never below zero."""

    def __init__(self, *args: Any, bandwidth: float, init_threshold: float, loss: JumpReLULoss, **kwargs: Any):
        """bandwidth: of the window that thresholds see; init_threshold: each latent's at the start; the rest as CorrectedCoder takes it."""
        super().__init__(*args, **kwargs)
        self.bandwidth, self.sparsity_loss = bandwidth, loss
        self.threshold = nn.Parameter(torch.full((self.num_latents,), init_threshold, dtype=torch.float32, device=self.device))

    def trained(self) -> TrainedCoder:
        return TrainedCoder.of(self, threshold=self.threshold.detach(), trained_activation="jumprelu")

    @torch.no_grad()
    def project(self) -> None:
        """Raises thresholds below zero to zero: there a latent would fire with a negative activation."""
        self.threshold.clamp_(min=0)

    @torch.no_grad()
    def selections(self, centered_input: Tensor, dead: Sequence[Tensor], max_auxk: int) -> Selections:
        """The latents of centered_input [token, d_in] that fire or give a threshold a gradient, and AuxK's."""
        inputs, weight, bias = self.product_inputs(centered_input)
        near = entries_near_or_above(inputs, weight, bias, self.threshold - self.bandwidth / 2)
        indices = LatentIndices.from_tokens(near.latents, near.tokens, len(inputs), self.num_latents)
        return Selections(
            main=self.main_selection(near.preacts, indices, may_be_dense=True),
            indices=near.latents,
            auxk=self.auxk_selections(inputs, weight, bias, dead, max_auxk),
        )

    def fire(self, acts: Tensor, selection: Selection) -> Tensor:
        assert selection.entries is not None
        return JumpReLU.apply(
            acts, self.threshold, selection.preacts, selection.entries.latents, selection.products, self.bandwidth
        )

    def sparsity(self, acts: Tensor, selection: Selection, num_tokens: int) -> Tensor:
        """The sparsity loss in the definition of SAELens's JumpReLU trainer, summed over tokens."""
        entries = selection.entries
        assert entries is not None
        if self.sparsity_loss == JumpReLULoss.tanh:
            assert self.W_dec is not None
            norms = self.W_dec.norm(dim=1)
            return torch.tanh(TANH_SCALE * acts * norms[entries.latents]).sum()
        l0 = ActiveLatents.apply(
            self.threshold, selection.preacts, entries.tokens, entries.latents, num_tokens, selection.products, self.bandwidth
        )
        return l0.sum() if self.sparsity_loss == JumpReLULoss.step else (2 / self.cfg.k * (l0 - self.cfg.k) ** 2).sum()
