"""Held-out metrics of a language model with coders in place. What each means stands in metric_names.py."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from sae_transcoder.coder.corrected_coder import SparseCoder
from sae_transcoder.coder.positions import PositionFilter
from sae_transcoder.config import Config
from sae_transcoder.evaluation.reconstruction import encoded, ratio
from sae_transcoder.language_model.forward import Activations, spliced, spliced_output


@dataclass
class Splice:
    """Coders {hookpoint: coder} of a run that take their modules' place at once; the metrics go into `target`."""

    cfg: Config
    coders: Mapping[str, SparseCoder]
    target: dict[str, float]
    sums: dict[str, float] = field(default_factory=dict)

    def where(self) -> Hashable:
        """What two splices have in common whose modules are replaced at the same positions."""
        norms = self.cfg.max_norm_multiple and (self.cfg.max_norm_multiple, self.cfg.model_type)
        return tuple(self.coders), tuple(self.cfg.exclude_tokens), self.cfg.exclude_first_tokens, norms

    def effect(self, model: PreTrainedModel, tokens: Tensor, clean: Tensor, *, zero: bool = False) -> tuple[Tensor, Tensor]:
        """The cross-entropy [sequence, position - 1] and the divergence from the logits `clean` [sequence, position] of `tokens`
        with the coders' outputs, or zeros, in the modules' place."""
        position_filter = PositionFilter.of(self.cfg)
        counted = position_filter.by_token(tokens)

        def replace(point: str, seen: Activations) -> Tensor:
            kept = position_filter.kept(seen, counted)
            x, y = position_filter.inputs_and_targets(seen, kept)
            new = torch.zeros_like(y) if zero else encoded(self.coders[point], x)[0]
            return spliced_output(seen.output, kept, new)

        with spliced(model, list(self.coders), replace):
            logits = model(input_ids=tokens, use_cache=False).logits
        return cross_entropy(logits, tokens), divergence(clean, logits)

    def add(self, tokens: Tensor, without: Tensor, coder: tuple[Tensor, Tensor], ablated: tuple[Tensor, Tensor]) -> None:
        """Adds a batch: the cross-entropy without coders, and the effects of the coders and of zeros."""
        counted = PositionFilter.of(self.cfg).by_token(tokens)
        mask = torch.ones_like(tokens, dtype=torch.bool) if counted is None else counted.view(tokens.shape)
        terms = {
            "positions": mask,
            "predictions": mask[:, :-1],
            "ce_loss_without_sae": without * mask[:, :-1],
            "ce_loss_with_sae": coder[0] * mask[:, :-1],
            "ce_loss_with_ablation": ablated[0] * mask[:, :-1],
            "kl_div_with_sae": coder[1] * mask,
            "kl_div_with_ablation": ablated[1] * mask,
        }
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + term.sum(dtype=torch.float64).item()

    def finish(self) -> None:
        """Writes the metrics into `target`."""
        counts = {"ce": self.sums.pop("predictions"), "kl": self.sums.pop("positions")}
        found = {name: ratio(total, counts[name[:2]]) for name, total in self.sums.items()}
        ce, ce_ablated = found["ce_loss_with_sae"], found["ce_loss_with_ablation"]
        kl, kl_ablated = found["kl_div_with_sae"], found["kl_div_with_ablation"]
        found["ce_loss_score"] = ratio(ce_ablated - ce, ce_ablated - found["ce_loss_without_sae"])
        found["kl_div_score"] = ratio(kl_ablated - kl, kl_ablated)
        self.target.update(found, total_tokens_eval_reconstruction=counts["kl"])


def measure(model: PreTrainedModel, splices: Sequence[Splice], batches: Iterable[Tensor]) -> None:
    """Fills in the metrics of all splices: for each batch [sequence, position] a forward of the model as it is, one for each splice,
    and one with zeros for each set of places."""
    for tokens in batches:
        clean = model(input_ids=tokens, use_cache=False).logits
        without = cross_entropy(clean, tokens)
        ablated: dict[Hashable, tuple[Tensor, Tensor]] = {}
        for splice in splices:
            place = splice.where()
            if place not in ablated:
                ablated[place] = splice.effect(model, tokens, clean, zero=True)
            splice.add(tokens, without, splice.effect(model, tokens, clean), ablated[place])
    for splice in splices:
        splice.finish()


def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """The next token's cross-entropy in nats, [sequence, position - 1], from logits [sequence, position, vocabulary]."""
    # One sequence at a time: a batch's logits in float64 may not fit.
    return torch.stack(
        [F.cross_entropy(row[:-1].double(), ids[1:], reduction="none") for row, ids in zip(logits, tokens, strict=True)]
    )


def divergence(clean: Tensor, spliced: Tensor) -> Tensor:
    """KL(clean || spliced) in nats, [sequence, position], from logits [sequence, position, vocabulary]."""
    rows = []
    for one, other in zip(clean, spliced, strict=True):
        log_p, log_q = one.double().log_softmax(-1), other.double().log_softmax(-1)
        rows.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return torch.stack(rows)
