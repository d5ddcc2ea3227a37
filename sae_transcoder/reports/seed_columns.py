"""The tables of what several coders have in common, in the terminal and in report.html: metrics over seeds, and latents pair by pair."""

from collections.abc import Callable, Sequence
from typing import Any

from sae_transcoder.reports import formats
from sae_transcoder.reports.columns import COLUMNS, Column, differing_settings, setting_column, value_column
from sae_transcoder.reports.matching import CommonLatents, Matching
from sae_transcoder.reports.seed_groups import SAME_SETTINGS, SeedGroup, metric_spread, spread, training_spread
from sae_transcoder.run_store import eval_file
from sae_transcoder.run_store.run_records import coder_kind

OVER_SEEDS = "Over seeds: mean ± standard deviation"
IN_COMMON = "Latents in common"
SHARED = "latents in common"  # the label of their share


def spread_column(key: str, header: str, show: Callable[[Any], str]) -> Column:
    """A column that shows the mean and deviation of a value."""
    return value_column(key, header, formats.spread(show))


SPREADS = (
    spread_column("l0", COLUMNS["l0"].header, formats.number(".2f")),
    spread_column("fvu", COLUMNS["fvu"].header, formats.fvu),
    spread_column("ce_loss_score", COLUMNS["ce_loss_score"].header, formats.number(".4f")),
    spread_column("never_fired", COLUMNS["never_fired"].header, formats.percent),
    spread_column("dead_fraction", COLUMNS["dead_fraction"].header, formats.percent),
)
SHARED_COLUMN = spread_column("shared", SHARED, formats.percent)
PAIR_COLUMNS = (
    Column("one", "coder", lambda values: values["one"], right=False),
    Column("other", "and", lambda values: values["other"], right=False),
    value_column("latents", "latents", formats.number(",")),
    value_column("shared", "in common", formats.percent),
    value_column("agree", "matchings agree", formats.percent),
    value_column("encoder_cosine", "cosine of encoder rows", formats.number(".3f")),
    value_column("decoder_cosine", "of decoder rows", formats.number(".3f")),
)


def group_columns(groups: Sequence[SeedGroup], matching: Matching) -> list[Column]:
    """The columns of the table over seeds: where, the settings in which the groups differ, k, how many seeds, metrics, and the latents in common if
    they were matched."""
    records = [member.record for group in groups for member in group.members]
    settings = [name for name in differing_settings(records) if name in (*SAME_SETTINGS, "kind") and name != "k"]
    return [
        Column("hookpoint", "hookpoint", lambda values: values["hookpoint"], right=False),
        *map(setting_column, settings),
        COLUMNS["k"],
        value_column("seeds", "seeds", formats.number(",")),
        *SPREADS,
        *([SHARED_COLUMN] if matching.pairs else []),
    ]


def group_values(group: SeedGroup, matching: Matching) -> dict[str, Any]:
    """What the columns show of a group; a metric is a Spread or None."""
    metrics = {column.key: metric_spread(group, column.key) for column in SPREADS}
    never_fired = spread([eval_file.never_fired(member.coder.metrics) for member in group.members])
    found = {
        "never_fired": never_fired,
        "dead_fraction": training_spread(group, "dead_fraction"),
        "shared": matching.of_group(group),
    }
    place = {"kind": coder_kind(group.config), "hookpoint": group.hookpoint, "seeds": len(group.seeds)}
    return {**dict.fromkeys(SAME_SETTINGS), **group.config, **place, **metrics, **found}


def pair_values(pair: CommonLatents) -> dict[str, Any]:
    """What PAIR_COLUMNS show of a pair."""
    names = {key: f"{coder.record.name}/{coder.coder.coder}" for key, coder in (("one", pair.one), ("other", pair.other))}
    return {**vars(pair.match), **names}
