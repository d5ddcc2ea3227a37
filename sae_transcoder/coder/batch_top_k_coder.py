"""A coder whose latents are those of the largest pre-activations of a batch (BatchTopK), and the threshold that replaces the batch once it is
trained."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sae_transcoder.coder.batch_top_k import batch_top_k
from sae_transcoder.coder.corrected_coder import CorrectedCoder, Selections
from sae_transcoder.coder.entries import Entries
from sae_transcoder.coder.trained_coder import TrainedCoder
from sae_transcoder.distributed import ALONE, Ranks


class BatchTopKCoder(CorrectedCoder):
    """Selects `cfg.k` latents per token on average. Its threshold is a moving average of the batches' smallest selected activations, corrected
    for its start, as Adam's averages are."""

    average: Tensor  # float64: the weighted sum of the batches' cuts, and of their weights

    def __init__(self, *args: Any, threshold_beta: float, **kwargs: Any):
        """threshold_beta: the share of the average that stays at each batch; the rest as CorrectedCoder takes it."""
        super().__init__(*args, **kwargs)
        self.threshold_beta = threshold_beta
        self.register_buffer("average", torch.zeros(2, dtype=torch.float64, device=self.device))
        self.last_cut: Tensor | None = None  # only saves time: no result depends on it

    @property
    def threshold(self) -> Tensor:
        """Above which latents fire once the coder is trained, float32 [1]; 0 before the first batch."""
        total, weight = self.average
        return torch.where(weight > 0, total / weight, 0.0).float()[None]

    def trained(self) -> TrainedCoder:
        return TrainedCoder.of(
            self, threshold=self.threshold, trained_activation="batchtopk", matryoshka_widths=self.matryoshka_widths
        )

    @torch.no_grad()
    def select_from_batch(self, x: Tensor, num_tokens: int, ranks: Ranks = ALONE) -> Entries:
        """The entries of x [token, d_in] that are selected from a batch of `num_tokens` in all, of which x are this rank's; moves the threshold.

        All ranks that share the batch call it, once for each batch.
        """
        inputs = self.product_inputs(x if self.cfg.transcode else x - self.b_dec)
        entries, cut = batch_top_k(*inputs, self.cfg.k * num_tokens, self.last_cut, ranks)
        if cut is not None:
            self.last_cut = cut
            self.average.mul_(self.threshold_beta).add_((1 - self.threshold_beta) * torch.stack([cut, torch.ones_like(cut)]))
        return entries

    @torch.no_grad()
    def selections(
        self, centered_input: Tensor, dead: Sequence[Tensor], max_auxk: int, selected: Entries | None = None
    ) -> Selections:
        """The selected entries of centered_input [token, d_in] (None: the largest of these tokens), and AuxK's latents."""
        inputs, weight, bias = self.product_inputs(centered_input)
        if selected is None:
            selected, _ = batch_top_k(inputs, weight, bias, self.cfg.k * len(inputs), None)
        indices = selected.indices(len(inputs), self.num_latents)
        return Selections(
            main=self.main_selection(selected.preacts, indices),
            indices=selected.latents,
            auxk=self.auxk_selections(inputs, weight, bias, dead, max_auxk),
        )
