"""Which positions of a batch a coder is trained or measured on, and its inputs and targets there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, isin, tensor

from sae_transcoder.config import Config, ModelType, leaves_roles_out
from sae_transcoder.distributed import ALONE, Ranks
from sae_transcoder.language_model.forward import Activations
from sae_transcoder.process.to_device import copy_to_device, true_indices


@dataclass(frozen=True)
class PositionFilter:
    """Which positions of a batch are kept. Runs with equal filters share the inputs and targets at a hookpoint."""

    model_type: ModelType
    exclude_tokens: tuple[int, ...]
    exclude_first_tokens: int
    max_norm_multiple: float | None
    positions_per_rank: int  # in a full batch
    marked: bool = False  # whether some tokens are marked as left out (forward.ids_of)

    @classmethod
    def of(cls, cfg: Config) -> PositionFilter:
        """The filter that the settings describe."""
        excluded = tuple(cfg.exclude_tokens)
        return cls(
            cfg.model_type,
            excluded,
            cfg.exclude_first_tokens,
            cfg.max_norm_multiple,
            cfg.batch_size * cfg.max_seq_length,
            leaves_roles_out(cfg),
        )

    def by_token(self, tokens: Tensor) -> Tensor | None:
        """Mask of positions kept by token id and index, [batch * position], on the tokens' device; None keeps all.

        tokens: [batch, position]; an id below zero is marked as left out.
        """
        if not self.exclude_tokens and not self.exclude_first_tokens and not self.marked:
            return None
        mask = isin(tokens, tensor(self.exclude_tokens, dtype=tokens.dtype, device=tokens.device), invert=True)
        if self.marked:
            mask &= tokens >= 0
        mask[:, : self.exclude_first_tokens] = False
        return mask.flatten()

    def within_norm(self, activations: Activations, mask: Tensor | None, ranks: Ranks = ALONE) -> Tensor:
        """Mask of positions kept at a hookpoint, [batch * position]: those of `mask` (None: all) whose norm is at most `max_norm_multiple`
        times the median.

        ranks: those that share the batch; the median is that of all their norms.
        """
        assert self.max_norm_multiple is not None
        inputs = activations.input if self.model_type == ModelType.transcoder else activations.output
        norms = inputs.detach().flatten(0, 1).float().norm(dim=-1)
        mask = torch.ones_like(norms, dtype=torch.bool) if mask is None else copy_to_device(norms.device, mask)
        kept_norms = torch.where(mask, norms, torch.inf)
        if ranks.size > 1:  # which may have different numbers of them
            padded = kept_norms.new_full((self.positions_per_rank,), torch.inf)
            padded[: len(kept_norms)] = kept_norms
            kept_norms = ranks.all_gather_tensor(padded)
        middle = (kept_norms.isfinite().sum() - 1) // 2
        median = kept_norms.sort().values.gather(0, middle.clamp(min=0)[None])
        return mask & (norms <= self.max_norm_multiple * median)

    def kept(self, activations: Activations, mask: Tensor | None, ranks: Ranks = ALONE) -> Tensor | None:
        """Indices of the positions kept at a hookpoint, in order [token]: those of `mask` whose norm is no outlier; None keeps all.

        With `max_norm_multiple` this waits for a GPU. A mask on the host is read there.
        """
        if self.max_norm_multiple is None:
            return None if mask is None else copy_to_device(activations.output.device, mask.nonzero()[:, 0])
        return true_indices([self.within_norm(activations, mask, ranks)])[0]

    def inputs_and_targets(self, activations: Activations, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """A coder's inputs and targets at a hookpoint, float32, each [token, d], at the positions `kept` [token]; one tensor for an SAE."""

        def rows(values: Tensor) -> Tensor:
            flat = values.flatten(0, 1)
            return (flat if kept is None else flat[kept]).float()

        y = rows(activations.output)
        return (rows(activations.input) if self.model_type == ModelType.transcoder else y), y

    def training_pairs(self, activations: Activations, tokens: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
        """Inputs and targets for the batch `tokens` [batch, position], computed once for all runs with an equal filter."""
        kept = activations.cached(self, lambda: self.kept(activations, self.by_token(tokens), ranks))
        return activations.cached(("inputs and targets", self), lambda: self.inputs_and_targets(activations, kept))
