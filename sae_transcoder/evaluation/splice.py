"""Held-out metrics of a language model with coders in place. metric_names.py says what each means."""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from sae_transcoder.coder.corrected_coder import SparseCoder
from sae_transcoder.coder.positions import PositionFilter
from sae_transcoder.config import Config
from sae_transcoder.evaluation.reconstruction import ratio, reconstruct
from sae_transcoder.language_model.forward import Activations, ids_of, spliced, spliced_output
from sae_transcoder.run_store.scores import with_scores


@dataclass
class Splice:
    """Coders {hookpoint: coder} of a run that replace their modules at once; `metrics` takes the results."""

    cfg: Config
    coders: Mapping[str, SparseCoder]
    metrics: dict[str, float]
    means: Mapping[str, Tensor] = field(default_factory=dict)  # of each module's output over the tokens that count {hookpoint: [d]}
    sums: dict[str, list[Tensor]] = field(default_factory=dict)  # of each batch, over the positions of a sequence [sequence]

    def ablation_key(self) -> Hashable:
        """The same for splices that replace the same modules at the same positions, so that ablations have the same effect."""
        norms = self.cfg.max_norm_multiple and (self.cfg.max_norm_multiple, self.cfg.model_type)
        return tuple(self.coders), tuple(self.cfg.exclude_tokens), self.cfg.exclude_first_tokens, norms

    def losses(
        self, model: PreTrainedModel, tokens: Tensor, clean_logits: Tensor, ablation: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The cross-entropy [sequence, position - 1], and the KL divergence from clean_logits [sequence, position], of `tokens` with the
        modules replaced by their coders, or by the `ablation` {hookpoint: constant output, [d] or a number}."""
        position_filter = PositionFilter.of(self.cfg)
        counted = position_filter.by_token(tokens)

        def replace(hookpoint: str, activations: Activations) -> Tensor:
            kept = position_filter.kept(activations, counted)
            x, y = position_filter.inputs_and_targets(activations, kept)
            if ablation is not None:
                return spliced_output(activations.output, kept, ablation[hookpoint].to(y).expand_as(y))
            return spliced_output(activations.output, kept, reconstruct(self.coders[hookpoint], x)[0])

        with spliced(model, list(self.coders), replace):
            logits = model(input_ids=ids_of(tokens), use_cache=False).logits
        return cross_entropy(logits, ids_of(tokens)), kl_divergence(clean_logits, logits)

    def ablations(self) -> dict[str, Mapping[str, Tensor]]:
        """{how the names of its losses end: the ablation}."""
        return {"ablation": dict.fromkeys(self.coders, torch.zeros(())), "mean_ablation": self.means}

    def add(
        self, tokens: Tensor, clean_ce: Tensor, with_coders: tuple[Tensor, Tensor], ablated: Mapping[str, tuple[Tensor, Tensor]]
    ) -> None:
        """Adds a batch: the cross-entropy of the model as it is, and the `losses` with coders and with each of the `ablations`."""
        counted = PositionFilter.of(self.cfg).by_token(tokens)
        mask = torch.ones_like(tokens, dtype=torch.bool) if counted is None else counted.view(tokens.shape)
        terms = {"positions": mask, "predictions": mask[:, :-1], "ce_loss_without_sae": clean_ce * mask[:, :-1]}
        for name, (ce, kl) in {"sae": with_coders, **ablated}.items():
            terms |= {f"ce_loss_with_{name}": ce * mask[:, :-1], f"kl_div_with_{name}": kl * mask}
        for name, term in terms.items():
            self.sums.setdefault(name, []).append(term.sum(1, dtype=torch.float64))

    def finish(self) -> None:
        """Writes the means, the errors of the ablations' effects, and the scores into `metrics`."""
        sums = {name: torch.cat(batches).cpu().numpy() for name, batches in self.sums.items()}
        counts = {"ce": sums.pop("predictions"), "kl": sums.pop("positions")}
        metrics = {name: ratio(float(total.sum()), float(counts[name[:2]].sum())) for name, total in sums.items()}
        for name in self.ablations():
            effect = sums[f"ce_loss_with_{name}"] - sums["ce_loss_without_sae"]
            metrics[f"ce_loss_{name}_std_error"] = standard_error(effect, counts["ce"])
            metrics[f"kl_div_{name}_std_error"] = standard_error(sums[f"kl_div_with_{name}"], counts["kl"])
        self.metrics.update(with_scores(metrics), total_tokens_eval_reconstruction=float(counts["kl"].sum()))


def standard_error(sums: np.ndarray, counts: np.ndarray) -> float:
    """The standard error of a mean over tokens, sum of `sums` / sum of `counts` [sequence]; NaN for fewer than two sequences.

    Sequences are what is independent, not tokens: that of a ratio estimator (Cochran 1977, equation 6.13).
    """
    used = counts > 0
    num_sequences = int(used.sum())
    if num_sequences < 2:
        return math.nan
    deviations = sums - sums.sum() / counts.sum() * counts
    return math.sqrt(num_sequences / (num_sequences - 1) * float((deviations[used] ** 2).sum())) / float(counts.sum())


def measure_splices(model: PreTrainedModel, splices: Sequence[Splice], batches: Iterable[Tensor]) -> None:
    """Fills in the metrics of all splices.

    For each batch [sequence, position] this takes a forward of the model as it is, one for each splice, and one with zeros and one with means
    for each `ablation_key`.
    """
    for tokens in batches:
        clean_logits = model(input_ids=ids_of(tokens), use_cache=False).logits
        clean_ce = cross_entropy(clean_logits, ids_of(tokens))
        ablated: dict[Hashable, dict[str, tuple[Tensor, Tensor]]] = {}
        for splice in splices:
            key = splice.ablation_key()
            if key not in ablated:
                ablated[key] = {
                    name: splice.losses(model, tokens, clean_logits, ablation) for name, ablation in splice.ablations().items()
                }
            splice.add(tokens, clean_ce, splice.losses(model, tokens, clean_logits), ablated[key])
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
