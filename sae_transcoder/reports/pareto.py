"""What the Pareto plots show: sparsity against a metric, and which coders are optimal."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sae_transcoder.reports.plot_data import PlottedCoder

EQUAL_L0 = 0.02  # of an L0: coders that aim at one k end so near to it and to each other
OPTIMAL = (
    f"FVU of 1 at most, and no point of the panel has a lower FVU (higher CE score) at an L0 as low, within {100 * EQUAL_L0:g} %"
)
"""Which points have a ring, as the pictures and the page say it."""


@dataclass(frozen=True)
class Tradeoff:
    """One row of the Pareto plot, L0 against a metric. `name`: the metric's; `cost`: its value, or the negative where a high one is good;
    `missing`: why a coder has no value, "" where it has or where nothing was measured."""

    name: str
    label: str
    metric: Callable[[PlottedCoder], float]
    cost: Callable[[PlottedCoder], float]
    missing: Callable[[PlottedCoder], str] = lambda coder: ""

    def plottable(self, coders: Iterable[PlottedCoder]) -> list[PlottedCoder]:
        """The coders that have a point: the metric exists, and L0 has a logarithm."""
        return [coder for coder in coders if math.isfinite(self.metric(coder)) and coder.l0 > 0]

    def is_shown(self, coder: PlottedCoder) -> bool:
        """Whether the coder has a point, or a reason to have none."""
        return bool(self.plottable([coder]) or self.missing(coder))

    def reason(self, coders: Iterable[PlottedCoder]) -> str:
        """How many coders of a panel have no point, and why; empty where all have one."""
        lacking = [reason for coder in coders if not coder.seeds and (reason := self.missing(coder))]
        if not lacking:
            return ""
        others = "" if len(set(lacking)) == 1 else ", or the like"
        return f"{len(lacking):,} without {self.label}: {lacking[0]}{others}"

    def deviations(self, coder: PlottedCoder) -> tuple[float, float]:
        """The standard deviations of L0 and of the metric of a mean over seeds; 0 for a coder."""
        return coder.deviations.get("l0", 0.0), coder.deviations.get(self.name, 0.0)


TRADEOFFS = (
    Tradeoff("fvu", "FVU, held out", lambda coder: coder.fvu, lambda coder: coder.fvu),
    Tradeoff(
        "ce_loss_score",
        "CE loss score",
        lambda coder: coder.ce_loss_score,
        lambda coder: -coder.ce_loss_score,
        lambda coder: coder.no_score,
    ),
)


def points_and_seeds(coders: Sequence[PlottedCoder]) -> tuple[list[PlottedCoder], list[PlottedCoder]]:
    """Of a panel's coders those that count, means over seeds and coders that no mean stands for; and the others, whose mean does."""
    averaged = {place for coder in coders for place in coder.seeds}
    return [coder for coder in coders if coder.place not in averaged], [coder for coder in coders if coder.place in averaged]


def pareto_mask(costs: Sequence[tuple[float, float]]) -> list[bool]:
    """For each pair of an L0 and a cost, whether no other pair has a lower cost at an L0 that is not higher, or the same cost at a lower one. L0
    within EQUAL_L0 of each other count as equal."""
    if not costs:
        return []
    l0, cost = np.array(costs, dtype=float).T
    lower_cost = cost[:, None] < cost  # [the other, the pair]
    higher_l0, lower_l0 = l0[:, None] > l0 * (1 + EQUAL_L0), l0[:, None] * (1 + EQUAL_L0) < l0
    beaten = (lower_cost & ~higher_l0) | ((cost[:, None] == cost) & lower_l0)
    return (~beaten.any(0)).tolist()


def pareto_optimal(coders: Sequence[PlottedCoder], tradeoff: Tradeoff) -> list[PlottedCoder]:
    """The Pareto-optimal coders of a panel, among those that are better than the mean output: of an FVU of 1 at most."""
    useful = [coder for coder in coders if not coder.fvu > 1]
    return list(itertools.compress(useful, pareto_mask([(coder.l0, tradeoff.cost(coder)) for coder in useful])))


def best_of_each_k(coders: Sequence[PlottedCoder], cost: Callable[[PlottedCoder], float]) -> list[PlottedCoder]:
    """Of the coders of each k, or l0_coefficient where that sets the sparsity, the one of the lowest cost, ordered by L0."""
    best: dict[tuple[str, float | None], PlottedCoder] = {}
    for coder in coders:
        aim = ("k", coder.k) if coder.aims_at_k else ("l0_coefficient", coder.l0_coefficient)
        if aim not in best or cost(coder) < cost(best[aim]):
            best[aim] = coder
    return sorted(best.values(), key=lambda coder: coder.l0)
