"""What the Pareto plots show: sparsity against a metric, and which coders are optimal."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sae_transcoder.reports.plot_data import PlottedCoder


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
    """For each pair of costs, whether no other pair is at most as high in both and lower in one."""
    optimal = [False] * len(costs)
    best = math.inf
    order = sorted(range(len(costs)), key=lambda i: costs[i])
    for _, group in itertools.groupby(order, key=lambda i: costs[i][0]):
        equal_first = list(group)
        lowest = costs[equal_first[0]][1]
        if lowest < best:
            best = lowest
            for i in equal_first:
                optimal[i] = costs[i][1] == lowest
    return optimal


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
