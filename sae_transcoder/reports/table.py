"""The table of runs in the terminal, and why runs ended."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from sae_transcoder.reports.columns import COLUMNS, Column, columns, count_states
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
LEAST_IMPORTANT = ("eta", "tokens_per_s", "dead_fraction", "train_fvu", "step", "l0")  # left out in this order


def runs_table(records: Sequence[Record], console: Console, counts_first: bool = False) -> RenderableType:
    """The runs and a count of their states, as wide as they need.

    On a narrower terminal names are folded and columns left out: those without any value, then settings from the right, then
    LEAST_IMPORTANT. A last line says which.
    """
    rows = [run_records.values(record) for record in records]
    chosen = columns(records)
    table = grid(chosen, rows, console.is_terminal)
    empty = [column for column in chosen if all(column.show(values) == "-" for values in rows)]
    settings = [column for column in chosen if column.key not in COLUMNS]
    left_out: list[str] = []
    for column in [None, *empty, *reversed(settings), *(COLUMNS[key] for key in LEAST_IMPORTANT)]:
        if not console.is_terminal or fits(table, console):
            break
        if column in chosen:
            chosen.remove(column)
            left_out += [] if column in empty else [column.header]
        table = grid(chosen, rows, lined=True, name_width=NAME_WIDTH)
    lines: list[RenderableType] = [state_counts(records), table] if counts_first else [table, state_counts(records)]
    if left_out:
        lines.append(Text(f"This terminal has no room for {', '.join(left_out)}", style="dim"))
    return Group(*lines)


def fits(table: Table, console: Console) -> bool:
    """Whether the console is as wide as the table without folding."""
    return Measurement.get(console, console.options.update(max_width=100_000), table).maximum <= console.width


def grid(chosen: Sequence[Column], rows: Sequence[Mapping[str, Any]], lined: bool, name_width: int | None = None) -> Table:
    """The columns of the rows. lined: draws a line under the headers, which plain output has no use for."""
    table = Table(box=box.SIMPLE_HEAD if lined else None, show_edge=False, pad_edge=False, padding=(0, 1 if lined else 2, 0, 0))
    for column in chosen:
        width = {"max_width": name_width, "min_width": 8} if column.key == "run" else {"no_wrap": True}
        table.add_column(column.header, justify="right" if column.right else "left", overflow="fold", **width)  # type: ignore[arg-type]
    for values in rows:
        cells = [Text(column.show(values)) for column in chosen]
        cells[1].stylize(COLOURS[State(values["state"])])
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
