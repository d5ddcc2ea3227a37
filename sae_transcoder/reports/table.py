"""The table of runs in the terminal, and why runs ended."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from sae_transcoder.reports.columns import COLUMNS, Column, columns, count_states
from sae_transcoder.reports.matching import Matching
from sae_transcoder.reports.notes import notes
from sae_transcoder.reports.seed_columns import (
    IN_COMMON,
    OVER_SEEDS,
    PAIR_COLUMNS,
    SPREADS,
    group_columns,
    group_values,
    pair_values,
)
from sae_transcoder.reports.seed_groups import SeedGroup, seed_groups
from sae_transcoder.run_store import job_record, run_records
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
ENDED_EARLY = (State.failed, State.cancelled, State.interrupted, State.preempted)
NAME_WIDTH = 30  # of run names on a terminal that is too narrow
FOLDED = ("run", "one", "other")  # columns of names
LEAST_IMPORTANT = ("eta", "tokens_per_s", "dead_fraction", "never_fired", "train_fvu", "step", "l0")  # left out in this order


def overview(
    records: Sequence[Record], matching: Matching, console: Console, *, counts_first: bool, failed: bool, asked: Sequence[str] = ()
) -> Group:
    """The table of runs; where coders differ in their seed alone, that of metrics over seeds; that of latents in common, if each pair is to be
    shown; failed: why runs ended early; asked: metrics beside the usual ones."""
    why = [Text(""), *(reasons(records) or [Text("no run ended before its time")])] if failed else []
    pairs = pairs_table(matching, console) if matching.shows_pairs else []
    return Group(
        runs_table(records, console, counts_first, asked), *seeds_table(seed_groups(records), matching, console), *pairs, *why
    )


def runs_table(
    records: Sequence[Record], console: Console, counts_first: bool = False, asked: Sequence[str] = ()
) -> RenderableType:
    """The runs, a count of their states and the `notes`, as wide as they need.

    On a narrower terminal names are folded and columns left out: those without any value, then settings from the right, then
    LEAST_IMPORTANT.
    """
    rows = [run_records.values(record) for record in records]
    chosen = columns(records, asked)
    settings = [column for column in chosen if column.key not in COLUMNS]
    shown = fitted(chosen, rows, console, [*reversed(settings), *(COLUMNS[key] for key in LEAST_IMPORTANT)])
    below = [*shown[1:], *(Text(note, style="yellow") for note in notes(records))]
    return Group(state_counts(records), shown[0], *below) if counts_first else Group(shown[0], state_counts(records), *below)


def fitted(
    columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], console: Console, optional: Sequence[Column]
) -> list[RenderableType]:
    """The table of the rows and, where a terminal has no room for all columns, a line that says which are left out: those without any value,
    then the optional ones in their order."""
    chosen, left_out = list(columns), []
    empty = [column for column in chosen if all(column.show(values) == "-" for values in rows)]
    table = grid(chosen, rows, console.is_terminal)
    for column in [None, *empty, *optional]:
        if not console.is_terminal or fits(table, console):
            break
        if column in chosen:
            chosen.remove(column)
            left_out += [] if column in empty else [column.header]
        table = grid(chosen, rows, lined=True, name_width=NAME_WIDTH)
    return [table, Text(f"This terminal has no room for {', '.join(left_out)}", style="dim")] if left_out else [table]


def seeds_table(groups: Sequence[SeedGroup], matching: Matching, console: Console) -> list[RenderableType]:
    """The metrics over seeds, as wide as the console; nothing where no coders differ in their seed alone."""
    if not groups:
        return []
    chosen = group_columns(groups, matching)
    rows = [group_values(group, matching) for group in groups]
    settings = [column for column in chosen[1:] if column not in SPREADS and column.key not in ("k", "seeds", "shared")]
    l0, _, score, never_fired, dead = SPREADS
    return [Text(f"\n{OVER_SEEDS}"), *fitted(chosen, rows, console, [dead, never_fired, l0, score, *reversed(settings)])]


def pairs_table(matching: Matching, console: Console) -> list[RenderableType]:
    """The latents in common, pair by pair."""
    rows = list(map(pair_values, matching.pairs))
    return [Text(f"\n{IN_COMMON}"), *fitted(PAIR_COLUMNS, rows, console, [*reversed(PAIR_COLUMNS[4:]), PAIR_COLUMNS[2]])]


def fits(table: Table, console: Console) -> bool:
    """Whether the console is as wide as the table without folding."""
    return Measurement.get(console, console.options.update(max_width=100_000), table).maximum <= console.width


def grid(chosen: Sequence[Column], rows: Sequence[Mapping[str, Any]], lined: bool, name_width: int | None = None) -> Table:
    """The columns of the rows. lined: draws a line under the headers, which plain output has no use for."""
    table = Table(box=box.SIMPLE_HEAD if lined else None, show_edge=False, pad_edge=False, padding=(0, 1 if lined else 2, 0, 0))
    for column in chosen:
        width = {"max_width": name_width, "min_width": 8} if column.key in FOLDED else {"no_wrap": True}
        table.add_column(column.header, justify="right" if column.right else "left", overflow="fold", **width)  # type: ignore[arg-type]
    for values in rows:
        cells = [Text(column.show(values)) for column in chosen]
        for column, cell in zip(chosen, cells, strict=True):
            if column.key == "state":
                cell.stylize(COLOURS[State(values["state"])])
        table.add_row(*cells)
    return table


def state_counts(records: Sequence[Record]) -> Text:
    """How many runs are in each state, in the states' colours."""
    counts = [Text(f"{count} {state}", style=COLOURS[state]) for state, count in count_states(records).items()]
    return Text(", ").join(counts) if counts else Text("no runs")


def reasons(records: Sequence[Record]) -> list[Text]:
    """For each run that ended early: its state, why, and where its log is."""
    texts = []
    for record in records:
        status = record.status
        if status.state in ENDED_EARLY:
            job = f", SLURM job {status.slurm_job}" if status.slurm_job else ""
            why = "\n".join(f"  {line}" for line in (str(status.why or "no reason was recorded")).splitlines())
            log_path = record.directory / "train.log"
            end = f"\n{why}\n  log: {log_path}" + ("" if log_path.exists() else " (does not exist)")
            if (slurm_output := record.directory / job_record.LINK).exists():
                end += f"\n  SLURM's: {slurm_output.resolve()}"
            heading = Text(f"{record.name}: ").append(str(status.state), COLOURS[status.state])
            texts.append(heading.append(f" at step {status.step:,} of {status.total:,}{job}").append(end))
    return texts


def print_runs(records: Sequence[Record], console: Console) -> None:
    """Prints the table of runs, and why some ended early."""
    if not console.is_terminal:
        console = Console(highlight=False, width=100_000)  # nothing is cut off in a file or pipe
    console.print(runs_table(records, console), soft_wrap=not console.is_terminal)
    for text in reasons(records):
        console.print(text)
