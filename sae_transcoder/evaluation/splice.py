"""Held-out metrics of a language model with coders in place. metric_names.py says what each means."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from sae_transcoder.coder.corrected_coder import SparseCoder
from sae_transcoder.coder.positions import PositionFilter
from sae_transcoder.config import Config
from sae_transcoder.evaluation.reconstruction import ratio, reconstruct
from sae_transcoder.language_model.forward import Activations, ids_of, spliced, spliced_output


@dataclass
class Splice:
    """Coders {hookpoint: coder} of a run that replace their modules at once; `metrics` takes the results."""

    cfg: Config
    coders: Mapping[str, SparseCoder]
    metrics: dict[str, float]
    sums: dict[str, float] = field(default_factory=dict)

    def ablation_key(self) -> Hashable:
        """The same for splices that replace the same modules at the same positions, so that zeros in their place have the same effect."""
        norms = self.cfg.max_norm_multiple and (self.cfg.max_norm_multiple, self.cfg.model_type)
        return tuple(self.coders), tuple(self.cfg.exclude_tokens), self.cfg.exclude_first_tokens, norms

    def losses(self, model: PreTrainedModel, tokens: Tensor, clean_logits: Tensor, *, zero: bool = False) -> tuple[Tensor, Tensor]:
        """The cross-entropy [sequence, position - 1], and the KL divergence from clean_logits [sequence, position], of `tokens` with the
        modules replaced by their coders, or by zeros."""
        position_filter = PositionFilter.of(self.cfg)
        counted = position_filter.by_token(tokens)

        def replace(hookpoint: str, activations: Activations) -> Tensor:
            kept = position_filter.kept(activations, counted)
            x, y = position_filter.inputs_and_targets(activations, kept)
            replacement = torch.zeros_like(y) if zero else reconstruct(self.coders[hookpoint], x)[0]
            return spliced_output(activations.output, kept, replacement)

        with spliced(model, list(self.coders), replace):
            logits = model(input_ids=ids_of(tokens), use_cache=False).logits
        return cross_entropy(logits, ids_of(tokens)), kl_divergence(clean_logits, logits)

    def add(self, tokens: Tensor, clean_ce: Tensor, with_coders: tuple[Tensor, Tensor], with_zeros: tuple[Tensor, Tensor]) -> None:
        """Adds a batch: the cross-entropy of the model as it is, and the `losses` with coders and with zeros."""
        counted = PositionFilter.of(self.cfg).by_token(tokens)
        mask = torch.ones_like(tokens, dtype=torch.bool) if counted is None else counted.view(tokens.shape)
        terms = {
            "positions": mask,
            "predictions": mask[:, :-1],
            "ce_loss_without_sae": clean_ce * mask[:, :-1],
            "ce_loss_with_sae": with_coders[0] * mask[:, :-1],
            "ce_loss_with_ablation": with_zeros[0] * mask[:, :-1],
            "kl_div_with_sae": with_coders[1] * mask,
            "kl_div_with_ablation": with_zeros[1] * mask,
        }
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + term.sum(dtype=torch.float64).item()

    def finish(self) -> None:
        """Writes the means into `metrics`."""
        counts = {"ce": self.sums.pop("predictions"), "kl": self.sums.pop("positions")}
        means = {name: ratio(total, counts[name[:2]]) for name, total in self.sums.items()}
        ce, ce_ablated = means["ce_loss_with_sae"], means["ce_loss_with_ablation"]
        kl, kl_ablated = means["kl_div_with_sae"], means["kl_div_with_ablation"]
        means["ce_loss_score"] = ratio(ce_ablated - ce, ce_ablated - means["ce_loss_without_sae"])
        means["kl_div_score"] = ratio(kl_ablated - kl, kl_ablated)
        self.metrics.update(means, total_tokens_eval_reconstruction=counts["kl"])


def measure_splices(model: PreTrainedModel, splices: Sequence[Splice], batches: Iterable[Tensor]) -> None:
    """Fills in the metrics of all splices.

    For each batch [sequence, position] this takes a forward of the model as it is, one for each splice, and one with zeros for each
    `ablation_key`.
    """
    for tokens in batches:
        clean_logits = model(input_ids=ids_of(tokens), use_cache=False).logits
        clean_ce = cross_entropy(clean_logits, ids_of(tokens))
        with_zeros: dict[Hashable, tuple[Tensor, Tensor]] = {}
        for splice in splices:
            key = splice.ablation_key()
            if key not in with_zeros:
                with_zeros[key] = splice.losses(model, tokens, clean_logits, zero=True)
            splice.add(tokens, clean_ce, splice.losses(model, tokens, clean_logits), with_zeros[key])
    for splice in splices:
        splice.finish()


def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """The next token's cross-entropy in nats, [sequence, position - 1], from logits [sequence, position, vocabulary]."""
    # One sequence at a time: a batch's logits in float64 may not fit.
    return torch.stack(
        [F.cross_entropy(row[:-1].double(), ids[1:], reduction="none") for row, ids in zip(logits, tokens, strict=True)]
    )


def kl_divergence(clean_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(clean || spliced) in nats, [sequence, position], from logits [sequence, position, vocabulary]."""
    rows = []
    for clean, spliced_row in zip(clean_logits, logits, strict=True):
        log_p, log_q = clean.double().log_softmax(-1), spliced_row.double().log_softmax(-1)
        rows.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return torch.stack(rows)
