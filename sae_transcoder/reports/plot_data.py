"""What the pictures show: each coder's point, training curve and densities, in panels and series; pure numbers, no drawing."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from natsort import natsorted

from sae_transcoder.reports.query import plain
from sae_transcoder.reports.table import COLUMNS, fvu, number, percent
from sae_transcoder.run_store import run_files, run_records
from sae_transcoder.run_store.eval_file import CoderMetrics
from sae_transcoder.run_store.run_records import Complain, Record

CURVE_POINTS = 300  # of one coder, at most
ALL_POINTS = 60_000  # of all curves of a picture, at most, unless that is less than 20 each
BIN = 0.2  # decades of density


@dataclass(frozen=True, order=True)
class Width:
    """The size of a coder, by which series are ordered: its latents; where only that is known, its expansion factor."""

    latents: int
    expansion: int = 0

    def __str__(self) -> str:
        return f"{self.latents:,} latents" if self.latents else f"x{self.expansion}"


@dataclass(frozen=True)
class Histogram:
    """Latents by log10 of the share of tokens on which they fire: `counts` of the bins from `first` on, `BIN` wide."""

    first: float
    counts: np.ndarray
    never: int
    total: int


@dataclass(frozen=True)
class Coder:
    """One coder of one run. `facts`: what to say of it; `curve`: [2, n], tokens and training FVU."""

    panel: str
    model_type: str
    width: Width
    k: int
    l0: float
    fvu: float
    ce_loss_score: float
    facts: Sequence[tuple[str, str]]
    curve: np.ndarray
    densities: Histogram | None

    @property
    def series(self) -> tuple[Width, str]:
        """What one line of a picture joins."""
        return self.width, self.model_type


def points(records: Sequence[Record], complain: Complain) -> list[Coder]:
    """Each evaluated coder, and each that has a training curve, of the records; faults of their files are said."""
    models = {record.config.get("model_name") for record in records if record.config}

    def panel(record: Record, hookpoint: str) -> str:
        return f"{record.config.get('model_name')} {hookpoint}" if len(models) > 1 else hookpoint

    evaluated = [(panel(r, c.hookpoint), c) for r in records if r.evaluation for c in r.evaluation.coders]
    d = {where: coder.d for where, coder in evaluated}
    differing = run_records.differing(records)
    found = []
    for record in records:
        curves = run_records.read_or_none(run_files.read_curve, record.directory, complain) or {}
        known = {coder.coder: coder for coder in record.evaluation.coders} if record.evaluation else {}
        shares = run_records.read_or_none(run_files.read_densities, record.directory, complain) if known else None
        for name in dict.fromkeys([*known, *curves]):
            coder = known.get(name)
            where = panel(record, coder.hookpoint if coder else name.partition("/")[0])
            width = Width(coder.num_latents) if coder else width_of(record.config, d.get(where, 0))
            metrics = coder.metrics if coder else {}
            facts = facts_of(record, name, coder, width, differing)
            histogram = bins(shares[name]) if shares and name in shares else None
            l0, fraction, score = (metrics.get(metric, math.nan) for metric in ("l0", "fvu", "ce_loss_score"))
            kind, k = str(record.config.get("model_type", "coder")), coder.k if coder else record.config.get("k") or 0
            curve = thinned(np.array(curves.get(name, [])).reshape(-1, 2).T, CURVE_POINTS)
            found.append(Coder(where, kind, width, k, l0, fraction, score, facts, curve, histogram))
    return found


def width_of(config: Mapping[str, Any], d: int) -> Width:
    """The size of a coder that is not evaluated; d: its hookpoint's dimensions, 0 where unknown."""
    expansion = config.get("expansion_factor") or 0
    latents = config.get("num_latents") or d * expansion
    return Width(latents) if latents else Width(0, expansion)


def facts_of(
    record: Record, name: str, coder: CoderMetrics | None, width: Width, differing: Sequence[str]
) -> list[tuple[str, str]]:
    """What is said of a coder where the pointer is: its run, its settings, its metrics."""
    facts = {"run": record.name, "coder": name}
    settings = dict.fromkeys(["model_type", "k", *differing])
    facts |= {setting: plain(record.config[setting]) for setting in settings if setting in record.config}
    facts["latents"] = f"{width.latents:,}" if width.latents else str(width)
    if coder:
        facts["k"] = str(coder.k)
        facts |= {"held-out FVU": fvu(coder.metrics.get("fvu")), "L0": number(".2f")(coder.metrics.get("l0"))}
        facts |= {COLUMNS[key].header: fvu(coder.metrics[key]) for key in ("ce_loss_score",) if key in coder.metrics}
        facts |= {"never fired": percent(1 - coder.metrics["frac_alive"])} if "frac_alive" in coder.metrics else {}
    last = {"train FVU": record.last.get(f"fvu/{name}")}
    return [*facts.items(), *((label, fvu(value)) for label, value in last.items() if value is not None)]


def thinned(curve: np.ndarray, most: int) -> np.ndarray:
    """At most so many of a curve's points, evenly spaced, the first and the last among them."""
    kept = np.unique(np.linspace(0, curve.shape[1] - 1, min(most, curve.shape[1])).round().astype(int))
    return curve[:, kept] if curve.shape[1] else curve


def points_each(curves: int) -> int:
    """How many points each of so many curves of a picture may have."""
    return max(20, min(CURVE_POINTS, ALL_POINTS // max(1, curves)))


def opacity(lines: int) -> float:
    """How opaque each of so many lines of a panel is."""
    return 0.9 if lines <= 24 else 0.35


def bins(density: np.ndarray) -> Histogram:
    """The histogram of one coder's densities."""
    fired = density[density > 0]
    if not len(fired):
        return Histogram(0.0, np.zeros(0, int), len(density), len(density))
    place = np.minimum(np.floor(np.log10(fired) / BIN + 1e-9), -1).astype(int)  # on every token: the last bin
    return Histogram(place.min() * BIN, np.bincount(place - place.min()), int((density == 0).sum()), len(density))


def outline(histogram: Histogram) -> np.ndarray:
    """[2, n]: the corners of a step histogram in percent of all latents, from zero to zero; x is log10 of the density."""
    edges = histogram.first + BIN * np.arange(len(histogram.counts) + 1)
    heights = 100 * np.concatenate([[0], np.repeat(histogram.counts, 2), [0]]) / histogram.total
    return np.stack([np.repeat(edges, 2), heights])


def pareto(costs: Sequence[tuple[float, float]]) -> list[bool]:
    """For each pair of costs whether no other is at most as high in both and lower in one."""
    optimal = [False] * len(costs)
    best = math.inf
    order = sorted(range(len(costs)), key=lambda i: costs[i])
    for _, equal in itertools.groupby(order, key=lambda i: costs[i][0]):
        level = list(equal)
        lowest = costs[level[0]][1]
        if lowest < best:
            best = lowest
            for i in level:
                optimal[i] = costs[i][1] == lowest
    return optimal


def panels(coders: Iterable[Coder]) -> list[str]:
    """The hookpoints in their order."""
    return natsorted({coder.panel for coder in coders})


def spread(found: Sequence[str], most: int) -> list[str]:
    """At most so many panels, evenly taken."""
    if len(found) <= most:
        return list(found)
    return [found[round(i * (len(found) - 1) / (most - 1))] for i in range(most)]


def best_line(coders: Sequence[Coder], metric: Callable[[Coder], float]) -> list[Coder]:
    """Of the coders of each k the one of the lowest metric, along L0."""
    best: dict[int, Coder] = {}
    for coder in coders:
        if coder.k not in best or metric(coder) < metric(best[coder.k]):
            best[coder.k] = coder
    return sorted(best.values(), key=lambda coder: coder.l0)


@dataclass(frozen=True)
class Trade:
    """One row of the Pareto picture: `cost` is low where a coder is good."""

    label: str
    of: Callable[[Coder], float]
    cost: Callable[[Coder], float]

    def shown(self, coders: Iterable[Coder]) -> list[Coder]:
        """The coders that have such a point: both numbers exist, and L0 has a logarithm."""
        return [coder for coder in coders if math.isfinite(self.of(coder)) and coder.l0 > 0]


TRADES = (
    Trade("FVU, held out", lambda coder: coder.fvu, lambda coder: coder.fvu),
    Trade("CE loss score", lambda coder: coder.ce_loss_score, lambda coder: -coder.ce_loss_score),
)


def optimal(shown: Sequence[Coder], trade: Trade) -> list[Coder]:
    """The Pareto-optimal coders of one panel's points."""
    return list(itertools.compress(shown, pareto([(coder.l0, trade.cost(coder)) for coder in shown])))


def logarithmic(values: Iterable[float]) -> bool:
    """Whether values span so much that their axis should be logarithmic."""
    every = list(values)
    return bool(every) and min(every) > 0 and max(every) / min(every) > 8


def reach(coders: Sequence[Coder]) -> tuple[float, float]:
    """Between what values an L0 axis runs that shows coders and their k."""
    ends = [*ticks(coders), *(coder.l0 for coder in coders if coder.l0 > 0)]
    return (min(ends) / 1.18, max(ends) * 1.18) if ends else (1.0, 10.0)


def ticks(coders: Iterable[Coder]) -> list[int]:
    """Values of k to write at the L0 axis, those too close to read left out."""
    every = sorted({coder.k for coder in coders if coder.k > 0})
    if not every:
        return []
    apart = max(1.12, (every[-1] / every[0]) ** (1 / 9))
    kept = [every[0]]
    for k in every[1:]:
        if k / kept[-1] >= apart * 0.999:
            kept.append(k)
    return kept
