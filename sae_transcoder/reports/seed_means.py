"""The means over seeds that the Pareto plots show, with their deviations."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from sae_transcoder.config import FIELDS
from sae_transcoder.reports.matching import Matching
from sae_transcoder.reports.plot_data import PlottedCoder
from sae_transcoder.reports.seed_columns import SHARED_COLUMN, SPREADS
from sae_transcoder.reports.seed_groups import SeedGroup, metric_spread

RUNS_TOLD = 3  # names in a tooltip
NO_CURVE = np.zeros((2, 0))


def means_over_seeds(coders: Iterable[PlottedCoder], groups: Iterable[SeedGroup], matching: Matching) -> list[PlottedCoder]:
    """The mean of each group of seeds, with no curve, densities, levels or thresholds of its own."""
    by_place = {coder.place: coder for coder in coders}
    means = []
    for group in groups:
        spreads = {name: metric_spread(group, name) for name in ("l0", "fvu", "ce_loss_score")}
        l0, fvu, score = (math.nan if value is None else value.mean for value in spreads.values())
        deviations = {name: value.std for name, value in spreads.items() if value is not None and value.std is not None}
        places = [member.place for member in group.members]
        first = by_place[places[0]]
        means.append(
            replace(
                first, l0=l0, fvu=fvu, ce_loss_score=score, facts=list(mean_facts(group, first, matching).items()), curve=NO_CURVE,
                densities=None, levels=(), thresholds={}, place=None, deviations=deviations, seeds=places,
            )
        )  # fmt: skip
    return means


def mean_facts(group: SeedGroup, first: PlottedCoder, matching: Matching) -> Mapping[str, str]:
    """The lines of a mean's tooltip: its runs, the settings of its first coder, its seeds, and the metrics of the table over seeds."""
    settings = {name: text for name, text in first.facts if name in (*FIELDS, "kind", "latents") and name != "init_seeds"}
    facts = {
        "runs": ", ".join(group.runs[:RUNS_TOLD]) + (f" and {more:,} more" if (more := len(group.runs) - RUNS_TOLD) > 0 else ""),
        "hookpoint": group.hookpoint,
        **settings,
        "mean of seeds": ", ".join(map(str, group.seeds)),
    }
    for column in SPREADS[:3]:
        if (value := metric_spread(group, column.key)) is not None:
            facts[column.header] = column.show({column.key: value})
    if (shared := matching.of_group(group)) is not None:
        facts[SHARED_COLUMN.header] = SHARED_COLUMN.show({"shared": shared})
    return facts
