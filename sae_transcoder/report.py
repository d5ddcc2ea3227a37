"""`sae-report`: the state of runs, their numbers as a table and as files, the pictures that go into the paper."""

import argparse
import contextlib
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.text import Text

from sae_transcoder.reports import query, watch
from sae_transcoder.reports import table as report_table
from sae_transcoder.reports.data_files import WRITERS, put, rows
from sae_transcoder.reports.query import ReportError
from sae_transcoder.run_store import run_records
from sae_transcoder.run_store.run_records import Record

WATCH_EVERY = 5.0  # seconds
EPILOG = """KEY is a field of sae-train (k, layers, lr, ...) or one of run, state, step, tokens_per_s, eta, train_fvu,
dead_fraction, fvu, ce_loss_score, l0 and the other metrics of eval.json.

  sae-report outputs/my_sweep --sort fvu                          the best first
  sae-report outputs --where model_type=sae --where 'k<=32'       some of the runs
  sae-report outputs --where 'layers=[6]' --csv layer6.csv        their numbers, a row per coder
  sae-report outputs/my_sweep --out pictures                      Pareto plots, curves, and a page that opens offline
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        "sae-report", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = found.add_argument
    add("folders", metavar="DIR", nargs="*", type=Path, default=[Path("outputs")], help="folder of runs, at any depth (outputs)")
    add("--sort", metavar="KEY", help="sort by a field or metric; -KEY: falling")
    add("--where", metavar="KEY=VALUE", action="append", default=[], help="show such runs only; also != < <= > >=; may be repeated")
    add("--watch", metavar="SECONDS", nargs="?", type=float, const=WATCH_EVERY, help="redraw every so often (5) while runs go on")
    add("--failed", action="store_true", help="say why runs ended before their time, and where their logs are")
    for kind in WRITERS:
        add(
            f"--{kind}",
            metavar="FILE",
            type=Path,
            help=f"write all numbers as {kind.capitalize() if kind == 'parquet' else kind.upper()}",
        )
    add("--out", metavar="FOLDER", type=Path, help="write pictures, png and svg, and report.html")
    return found


def arranged(arguments: Sequence[str]) -> list[str]:
    """The arguments, with what argparse would misread joined: a KEY that begins with `-`, and no SECONDS before a DIR."""
    found: list[str] = []
    for argument in arguments:
        previous = found[-1] if found else ""
        if previous == "--sort" and re.match("-[^-]", argument):
            found[-1] = f"--sort={argument}"
        elif previous == "--watch" and not re.fullmatch(r"[-+.\w]*\d[\w.]*", argument):
            found[-1:] = [f"--watch={WATCH_EVERY}", argument]
        else:
            found.append(argument)
    return found


class Faults:
    """Says what is wrong on stderr, each fault once."""

    def __init__(self) -> None:
        self.said: set[str] = set()

    def __call__(self, fault: str) -> None:
        if fault not in self.said:
            self.said.add(fault)
            print(f"warning: {fault}", file=sys.stderr)


def chosen(options: argparse.Namespace, faults: Faults) -> list[Record]:
    """The runs that were asked for, in the order that was asked for. Raises ReportError where there are none."""
    seen: list[str] = []
    records = run_records.read_all(options.folders, seen.append)
    if not records:
        raise ReportError("\n".join(seen))
    for fault in seen:
        faults(fault)
    return query.select(records, options.where, options.sort)


def show(records: Sequence[Record], options: argparse.Namespace, console: Console) -> Group:
    """What is printed of the runs."""
    parts = [report_table.table(records, console, counts_first=options.watch is not None and console.is_terminal)]
    if options.failed:
        parts += [Text(""), *(report_table.stopped(records) or [Text("no run ended before its time")])]
    return Group(*parts)


def export(records: Sequence[Record], options: argparse.Namespace, faults: Faults) -> None:
    """Writes the files that were asked for, and prints where they are."""
    wanted = {kind: path for kind in WRITERS if (path := getattr(options, kind))}
    found = list(rows(records)) if wanted else []
    for kind, path in wanted.items():
        print(put(path, WRITERS[kind](found)))
    if options.out:
        from sae_transcoder.reports import page, plot_data, static_plots

        coders = plot_data.points(records, faults)
        waiting = sum(record.evaluation is None for record in records)
        if waiting:
            print(f"{waiting} of {len(records)} runs are not evaluated yet: they are in the training curves only")
        if not coders:
            raise ReportError("no run has been evaluated or has a line of metrics yet: there is nothing to draw")
        evaluated = sum(len(record.evaluation.coders) for record in records if record.evaluation)
        if without := evaluated - len(plot_data.TRADES[0].shown(coders)):
            print(
                f"{without} of {evaluated} evaluated coders have an L0 of zero or no FVU: they have no place in the Pareto picture"
            )
        for path in static_plots.write(coders, options.out):
            print(path)
        print(put(options.out / "report.html", page.page(records, coders).encode()))


def run(arguments: Sequence[str], console: Console) -> None:
    """Does what the arguments ask for. Raises ReportError."""
    options, faults = parser().parse_args(arranged(arguments)), Faults()
    if not console.is_terminal:
        console.width = 100_000  # nothing is cut off in a file or pipe
    if options.watch is not None:
        if given := [f"--{name}" for name in (*WRITERS, "out") if getattr(options, name)]:
            raise ReportError(f"--watch with {', '.join(given)}: files are written once; leave out --watch")
        if not 0.1 <= options.watch < float("inf"):
            raise ReportError(f"--watch {options.watch:g}: seconds, at least 0.1")
        with contextlib.suppress(KeyboardInterrupt):
            watch.watch(lambda: chosen(options, faults), lambda records: show(records, options, console), console, options.watch)
        return
    records = chosen(options, faults)
    console.print(show(records, options, console), soft_wrap=not console.is_terminal)
    export(records, options, faults)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command. Exit code 0: done; 1: what was asked for cannot be done, and the message says why."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal's encoding may lack what is in a name
    try:
        run(sys.argv[1:] if arguments is None else arguments, Console(highlight=False))
    except ReportError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # of `sae-report | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
