"""The rows of files for other programs: one for each coder, or over seeds, with means and deviations."""

from collections.abc import Iterator, Sequence
from typing import Any

from sae_transcoder.config import FIELDS
from sae_transcoder.metric_names import NAMES
from sae_transcoder.reports.data_files import (
    LAST_METRICS,
    THRESHOLDS,
    TOGETHER,
    coder_rows,
    coder_values,
    level_columns,
    other_columns,
    without_nan,
)
from sae_transcoder.reports.errors import ReportError
from sae_transcoder.reports.matching import Matching
from sae_transcoder.reports.seed_groups import SeedGroup, Spread, seed_groups, spread
from sae_transcoder.run_store.run_records import Record, coder_kind


def table_rows(records: Sequence[Record], matching: Matching, over_seeds: bool) -> list[dict[str, Any]]:
    """The rows of the files: one for each coder, or over_seeds. Raises ReportError where no coders differ in their seed alone."""
    groups = seed_groups(records)
    if not over_seeds:
        return list(coder_rows(records, matching.of_coders(groups)))
    if not groups:
        raise ReportError("--over-seeds: no two evaluated coders differ in their seed alone; train with init_seeds=[0,1]")
    return list(group_rows(groups, matching))


def group_rows(groups: Sequence[SeedGroup], matching: Matching) -> Iterator[dict[str, Any]]:
    """A row for each group: its runs, settings and seeds, and of each metric `<metric>_mean` and `<metric>_std`; missing numbers are None.

    `shared_latents`: the share of latents that a pair of seeds has in common, over the pairs that were matched.
    """
    members = [member for group in groups for member in group.members]
    records = [member.record for member in members]
    metrics = [*NAMES, *TOGETHER, *LAST_METRICS, *THRESHOLDS, *level_columns(records), *other_columns(records)]
    for group in groups:
        first = group.members[0].coder
        settings = {name: group.config.get(name) for name in FIELDS if name != "init_seeds"}
        row = {"runs": group.runs, **settings, "kind": coder_kind(group.config), "hookpoint": group.hookpoint, "seeds": group.seeds}
        row |= {"d": first.d, "latents": first.num_latents}
        values = [coder_values(member.record, member.coder) for member in group.members]
        for name in metrics:
            row |= mean_and_std(name, spread([of_seed.get(name) for of_seed in values]))
        yield without_nan(row | mean_and_std("shared_latents", matching.of_group(group)))


def mean_and_std(name: str, value: Spread | None) -> dict[str, float | None]:
    """The two columns of a metric."""
    return {f"{name}_mean": value.mean if value else None, f"{name}_std": value.std if value else None}
