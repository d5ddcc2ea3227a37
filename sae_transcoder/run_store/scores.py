"""Scores of the language model with coders in place: how much of what an ablation does to the model the coders undo, and when that can be said.

A score divides by the effect of the ablation, ablated loss minus the model's own. Where that is negative, or small against its own error, the
quotient says nothing: by Fieller's theorem (1954) the confidence interval of a ratio has no ends once the denominator's reaches zero. The score
is NaN then, null in files, and `reasons` says why; the losses stay.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

LEAST_EFFECT = 4.0
"""Standard errors that an ablation's effect must have, for the denominator to be known to about a quarter."""


@dataclass(frozen=True)
class Score:
    """A score and the metrics that it is made of. clean: the loss of the model as it is, None where that is zero; error: the standard error of
    `ablated` less `clean`; loss, ablation: how a reason names them."""

    name: str
    clean: str | None
    with_coder: str
    ablated: str
    error: str
    loss: str
    ablation: str

    def effect(self, metrics: Mapping[str, float]) -> float:
        """By how much the ablation raises the loss, in nats; NaN where it was not measured."""
        return metrics.get(self.ablated, math.nan) - (metrics.get(self.clean, math.nan) if self.clean else 0.0)

    def value(self, metrics: Mapping[str, float]) -> float:
        """(ablated - with coder) / (ablated - clean): 1 for coders that change nothing, 0 for coders no better than the ablation; NaN where the
        effect is too small."""
        if self.reason(metrics):
            return math.nan
        effect = self.effect(metrics)
        return (metrics[self.ablated] - metrics[self.with_coder]) / effect if effect else math.nan

    def reason(self, metrics: Mapping[str, float]) -> str | None:
        """Why the score says nothing; None where it does, or where nothing was measured.

        Without an error, as in files of before, the sign of the effect decides.
        """
        effect, error = self.effect(metrics), metrics.get(self.error, 0.0)
        if math.isnan(effect):
            return None
        if math.isnan(error):
            return f"of one held-out sequence the error of {self.loss} is unknown; evaluate two or more"
        if effect > LEAST_EFFECT * error:
            return None
        size = f"{abs(effect):.3g}" + (f" ± {error:.2g}" if error else "")
        moves = f"falls by {size}" if effect < 0 else f"rises by only {size}"
        return f"with {self.ablation} in the module's place {self.loss} {moves} nats"


def scores_against(ablated: str, suffix: str, words: str) -> tuple[Score, Score]:
    """The CE and KL scores against an ablation. ablated: how the names of its losses end; suffix: how those of the scores do."""
    return (
        Score(
            f"ce_loss_score{suffix}", "ce_loss_without_sae", "ce_loss_with_sae", f"ce_loss_with_{ablated}", f"ce_loss_{ablated}_std_error",
            "the CE", words,
        ),
        Score(f"kl_div_score{suffix}", None, "kl_div_with_sae", f"kl_div_with_{ablated}", f"kl_div_{ablated}_std_error", "the KL", words),
    )  # fmt: skip


SCORES = {
    score.name: score
    for score in (*scores_against("ablation", "", "zeros"), *scores_against("mean_ablation", "_mean_ablation", "the mean"))
}


def with_scores(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics and the scores that their losses give."""
    return {**metrics, **{name: score.value(metrics) for name, score in SCORES.items() if score.ablated in metrics}}


def judged(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics with NaN for scores that say nothing, which files of before have too."""
    return {name: math.nan if name in SCORES and SCORES[name].reason(metrics) else value for name, value in metrics.items()}


def reasons(metrics: Mapping[str, float]) -> dict[str, str]:
    """{score: why it says nothing}, of the metrics' scores."""
    return {name: reason for name, score in SCORES.items() if name in metrics and (reason := score.reason(metrics))}


def is_worse_than_mean(metrics: Mapping[str, float]) -> bool:
    """Whether the mean output at every token would be the better reconstruction: an FVU above 1."""
    return metrics.get("fvu", 0) > 1
