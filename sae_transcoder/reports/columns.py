"""The columns of the table of runs, in the terminal and in report.html."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_transcoder.config import FIELDS
from sae_transcoder.metric_names import NAMES
from sae_transcoder.reports import formats
from sae_transcoder.run_store import run_records
from sae_transcoder.run_store.run_records import Record
from sae_transcoder.run_store.status import State


@dataclass(frozen=True)
class Column:
    """One column. `key`: a name of run_records.values; `show`: the text of its cell, from all values of the run."""

    key: str
    header: str
    show: Callable[[Mapping[str, Any]], str]
    right: bool = True


def value_column(key: str, header: str, show: Callable[[Any], str]) -> Column:
    """A column that shows one value."""
    return Column(key, header, lambda values: show(values[key]))


def setting_column(name: str) -> Column:
    """The column of a config field; a run without a config has a dash."""
    return Column(name, name, lambda values: formats.setting(values[name]) if values["model_type"] is not None else "-")


PROGRESS = (
    Column("run", "run", lambda values: values["run"], right=False),
    Column("state", "state", lambda values: values["state"], right=False),
    Column("step", "step", lambda values: f"{values['step']:,}/{values['total']:,}"),
    value_column("tokens_per_s", "tokens/s", formats.number(",.0f")),
    value_column("eta", "ETA", formats.time_left),
)
METRICS = (
    setting_column("k"),
    value_column("l0", "L0", formats.number(".1f")),
    value_column("train_fvu", "train FVU", formats.fvu),
    value_column("fvu", "held-out FVU", formats.fvu),
    value_column("ce_loss_score", "CE score", formats.number(".4f")),
    value_column("never_fired", "never fired", formats.percent),
    value_column("dead_fraction", "dead", formats.percent),
)
COLUMNS = {column.key: column for column in (*PROGRESS, *METRICS)}
OF_OTHER_DATA = ("fvu", "ce_loss_score")
"""The metrics that are shown of each evaluation beside the runs' own, where none are asked for."""


def columns(records: Sequence[Record], asked: Sequence[str] = (), *, metrics_first: bool = False) -> list[Column]:
    """The table's columns: progress, with the time left where a run has any, the settings in which the runs differ, k and metrics; beside these
    the metrics that are asked for, and the same, or OF_OTHER_DATA, of each evaluation on other data.

    metrics_first: settings stand behind the metrics and the progress last, for a page that may be too narrow for all.
    """
    goes_on = any(run_records.seconds_left(record.status) is not None for record in records)
    progress = [column for column in PROGRESS if goes_on or column.key != "eta"]
    settings = [setting_column(name) for name in differing_settings(records) if name not in COLUMNS]
    more = [metric_column(name) for name in asked if name not in COLUMNS]
    found = dict.fromkeys(
        (label, name) for record in records for label, other in record.others.items() for name in other.evaluation.mean()
    )
    labels = dict.fromkeys(label for label, _ in found)
    others = [other_column(name, label) for label in labels for name in asked or OF_OTHER_DATA if (label, name) in found]
    metrics = [*METRICS, *more, *others]
    (run, state), how_far = progress[:2], progress[2:]
    return [run, state, *metrics, *settings, *how_far] if metrics_first else [run, state, *how_far, *settings, *metrics]


def metric_column(name: str) -> Column:
    """The column of a held-out metric."""
    return COLUMNS.get(name) or value_column(name, name, formats.fvu)


def other_column(metric: str, label: str) -> Column:
    """The column of a metric in the evaluation of that label, shown as the run's own is."""
    own = metric_column(metric)

    def show(values: Mapping[str, Any]) -> str:
        return own.show({**values, **{name: values.get(run_records.on_data(name, label)) for name in NAMES}})

    return Column(run_records.on_data(metric, label), f"{own.header.removeprefix('held-out ')} on {label}", show)


def differing_settings(records: Sequence[Record]) -> list[str]:
    """The settings in which the runs differ, in the config's order, with their coders' kind in place of the activation.

    The widths of Matryoshka coders are among them only where these coders differ from each other.
    """
    shown = set(run_records.differing(records)) - {"activation", "matryoshka_widths"}
    if len({run_records.coder_kind(record.config) for record in records if record.config}) > 1:
        shown.add("kind")
    if len({json.dumps(widths) for record in records if (widths := record.config.get("matryoshka_widths")) is not None}) > 1:
        shown.add("matryoshka_widths")
    place = FIELDS.index("activation")
    return [name for name in (*FIELDS[:place], "kind", *FIELDS[place:]) if name in shown]


def count_states(records: Sequence[Record]) -> dict[State, int]:
    """{state: number of runs in it}, in the order of State, without states that no run is in."""
    num_runs = Counter(record.status.state for record in records)
    return {state: num_runs[state] for state in State if num_runs[state]}
