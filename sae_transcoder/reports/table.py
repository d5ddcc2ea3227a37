"""The table of runs: its columns, how a value reads, what a narrow terminal shows; and why runs ended."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from sae_transcoder.reports.query import plain
from sae_transcoder.run_store import job_record, observed_status, run_records
from sae_transcoder.run_store.run_records import Record
from sae_transcoder.run_store.status import State

COLOURS = {
    State.queued: "bright_black",
    State.running: "cyan",
    State.interrupted: "yellow",
    State.preempted: "yellow",
    State.failed: "red",
    State.cancelled: "magenta",
    State.done: "green",
}
STOPPED = (State.failed, State.cancelled, State.interrupted, State.preempted)


@dataclass(frozen=True)
class Column:
    """One column: `key` is a name of run_records.values."""

    key: str
    header: str
    show: Callable[[Mapping[str, Any]], str]
    right: bool = True


def number(form: str) -> Callable[[Any], str]:
    """Shows a number by a format; a dash for none."""
    return lambda value: "-" if value is None else format(value, form)


def fvu(value: float | None) -> str:
    """An FVU to four places; one that has run away in few digits."""
    return "-" if value is None else f"{value:.4f}" if not abs(value) >= 10 else f"{value:.3g}"


def simple(key: str, header: str, show: Callable[[Any], str]) -> Column:
    """A column of one value."""
    return Column(key, header, lambda values: show(values[key]))


def steps(values: Mapping[str, Any]) -> str:
    return f"{values['step']:,}/{values['total']:,}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def time_left(value: float | None) -> str:
    return "-" if value is None else observed_status.duration(value)


BEFORE = (
    Column("run", "run", lambda values: values["run"], right=False),
    Column("state", "state", lambda values: values["state"], right=False),
    Column("step", "step", steps),
    simple("tokens_per_s", "tokens/s", number(",.0f")),
    simple("eta", "ETA", time_left),
)
AFTER = (
    simple("train_fvu", "train FVU", fvu),
    simple("fvu", "held-out FVU", fvu),
    simple("ce_loss_score", "CE score", number(".4f")),
    simple("l0", "L0", number(".1f")),
    simple("dead_fraction", "dead", percent),
)
NAME_WIDTH = 30  # of run names on a terminal that is too narrow
LEAST = ("eta", "tokens_per_s", "dead_fraction", "train_fvu", "step", "l0")  # left out first
COLUMNS = {column.key: column for column in (*BEFORE, *AFTER)}


def setting(name: str) -> Column:
    """A config field's column; a run without a config has a dash."""
    return Column(name, name, lambda values: plain(values[name]) if values["model_type"] is not None else "-")


def columns(records: Sequence[Record]) -> list[Column]:
    """The table's columns: progress, the settings in which the runs differ, metrics."""
    return [*BEFORE, *map(setting, run_records.differing(records)), *AFTER]


def table(records: Sequence[Record], console: Console, counts_first: bool = False) -> RenderableType:
    """The runs and a count of their states, as wide as they need.

    On a narrower terminal names are folded and columns left out: those without any value, then settings from the right, then what
    matters least; that is said.
    """
    rows = [run_records.values(record) for record in records]
    chosen = columns(records)
    drawn = grid(chosen, rows, console.is_terminal)
    empty = [column for column in chosen if all(column.show(values) == "-" for values in rows)]
    settings = [column for column in chosen if column.key not in COLUMNS]
    left_out: list[str] = []
    for column in [None, *empty, *reversed(settings), *(COLUMNS[key] for key in LEAST)]:
        if not console.is_terminal or fits(drawn, console):
            break
        if column in chosen:
            chosen.remove(column)
            left_out += [] if column in empty else [column.header]
        drawn = grid(chosen, rows, lined=True, name_width=NAME_WIDTH)
    parts: list[RenderableType] = [counts(records), drawn] if counts_first else [drawn, counts(records)]
    if left_out:
        parts.append(Text(f"This terminal has no room for {', '.join(left_out)}", style="dim"))
    return Group(*parts)


def fits(drawn: Table, console: Console) -> bool:
    """Whether a table has the width that it would like to have."""
    return Measurement.get(console, console.options.update(max_width=100_000), drawn).maximum <= console.width


def grid(chosen: Sequence[Column], rows: Sequence[Mapping[str, Any]], lined: bool, name_width: int | None = None) -> Table:
    """The columns of the rows; with a line under the headers, which plain output has no use for."""
    drawn = Table(box=box.SIMPLE_HEAD if lined else None, show_edge=False, pad_edge=False, padding=(0, 1 if lined else 2, 0, 0))
    for column in chosen:
        width = {"max_width": name_width, "min_width": 8} if column.key == "run" else {"no_wrap": True}
        drawn.add_column(column.header, justify="right" if column.right else "left", overflow="fold", **width)  # type: ignore[arg-type]
    for values in rows:
        cells = [Text(column.show(values)) for column in chosen]
        cells[1].stylize(COLOURS[State(values["state"])])
        drawn.add_row(*cells)
    return drawn


def counts(records: Sequence[Record]) -> Text:
    """How many runs are in each state."""
    found = Counter(record.status.state for record in records)
    parts = [Text(f"{found[state]} {state}", style=COLOURS[state]) for state in State if found[state]]
    return Text(", ").join(parts) if len(parts) else Text("no runs")


def stopped(records: Sequence[Record]) -> list[Text]:
    """For each run that ended before its time: which, in what state, why, and where its log is."""
    found = []
    for record in records:
        status = record.status
        if status.state in STOPPED:
            job = f", SLURM job {status.slurm_job}" if status.slurm_job else ""
            why = "\n".join(f"  {line}" for line in (str(status.why or "no reason was recorded")).splitlines())
            log = record.directory / "train.log"
            end = f"\n{why}\n  log: {log}" + ("" if log.exists() else " (does not exist)")
            if (printed := record.directory / job_record.LINK).exists():
                end += f"\n  SLURM's: {printed.resolve()}"
            heading = Text(f"{record.name}: ").append(str(status.state), COLOURS[status.state])
            found.append(heading.append(f" at step {status.step:,} of {status.total:,}{job}").append(end))
    return found


def tell(records: Sequence[Record], console: Console) -> None:
    """Prints the runs as they are, and why some ended before their time."""
    if not console.is_terminal:
        console = Console(highlight=False, width=100_000)  # nothing is cut off in a file or pipe
    console.print(table(records, console), soft_wrap=not console.is_terminal)
    for text in stopped(records):
        console.print(text)
