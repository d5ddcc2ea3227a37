"""`sae-report`: the state of runs, their numbers as a table and as files, the pictures that go into the paper."""

import argparse
import contextlib
import functools
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group

from sae_transcoder.config import ConfigError
from sae_transcoder.config.command_help import CommandParser
from sae_transcoder.config.explain_field import add_explain
from sae_transcoder.config.paths import expanded, local_path
from sae_transcoder.config.spelling import did_you_mean
from sae_transcoder.metric_names import NAMES
from sae_transcoder.process.version_option import add_version
from sae_transcoder.reports import table, watch
from sae_transcoder.reports.data_files import WRITERS, write_file
from sae_transcoder.reports.errors import ReportError
from sae_transcoder.reports.matching import NOT_MATCHED, Matching, match_runs
from sae_transcoder.reports.query import read_selected
from sae_transcoder.reports.seed_rows import table_rows
from sae_transcoder.run_store.run_records import Record

WATCH_EVERY = 5.0  # seconds
MATCHED = ("seeds", "all")  # values of --matching
EPILOG = """\
KEY: a field of sae-train (k, layers, lr, ...); run, state, step, tokens_per_s, eta, train_fvu,
dead_fraction, never_fired; a metric of eval.json (fvu, ce_loss_score, l0, ...), METRIC@DATA on data
that sae-eval has measured beside the run's own; kind: the activation, matryoshka, matryoshka_topk.

  sae-report outputs/my_sweep --sort fvu                      the best first
  sae-report outputs --where model_type=sae --where 'k<=32'   some of the runs
  sae-report outputs --where 'layers=[6]' --csv layer6.csv    their numbers, a row for each coder
  sae-report outputs/my_sweep --out pictures                  Pareto plots, curves, an offline page
  sae-report outputs --metrics l0,fvu --sort fvu@mine.txt     on other data, the best there first
  sae-report outputs/my_seeds --matching                      which latents seeds have in common
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        "sae-report",
        description="The state of runs, their numbers as a table and as files, the pictures that go into the paper.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("folders", metavar="DIR", nargs="*", type=Path, default=[Path("outputs")], help="folder of runs, at any depth (outputs)")
    add("--sort", metavar="KEY", help="sort by a field or metric; -KEY: falling")
    add("--where", metavar="KEY=VALUE", action="append", default=[], help="show such runs only; also != < <= > >=; may be repeated")
    add("--watch", metavar="SECONDS", nargs="?", type=float, const=WATCH_EVERY, help="redraw every so often (5) while runs go on")
    add("--failed", action="store_true", help="say why runs ended before their time, and where their logs are")
    add("--matching", metavar="seeds|all", nargs="?", const="seeds", choices=MATCHED,
        help="which latents coders have in common that differ in their seed alone (seeds), or all of equal shape (all)")  # fmt: skip
    add("--metrics", metavar="NAME,...", type=names_of, default=(), help="held-out metrics to show beside the usual ones; of other data in place of "
        "fvu,ce_loss_score")  # fmt: skip
    for kind in WRITERS:
        name = kind.capitalize() if kind == "parquet" else kind.upper()
        add(f"--{kind}", metavar="FILE", type=Path, help=f"write all numbers as {name}")
    add(
        "--over-seeds",
        action="store_true",
        help="write into these files means and deviations over seeds, in place of a row for each coder",
    )
    add("--out", metavar="FOLDER", type=Path, help="write pictures, png and svg, and report.html")
    add_explain(parser)
    add_version(parser)
    return parser


def names_of(text: str) -> list[str]:
    """The metrics that a comma-separated text names. Raises ReportError for one that does not exist."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in NAMES:
            meant = did_you_mean(name, NAMES, f"choose of {', '.join(NAMES)}")
            raise ReportError(f"--metrics {text}: there is no metric {name}; {meant}")
    return list(dict.fromkeys(names))


def arranged(arguments: Sequence[str]) -> list[str]:
    """The arguments, with those joined that argparse would misread: a KEY that begins with `-`, --watch and --matching without a value."""
    result: list[str] = []
    for argument in arguments:
        previous = result[-1] if result else ""
        if previous == "--sort" and re.match("-[^-]", argument):
            result[-1] = f"--sort={argument}"
        elif previous == "--watch" and not re.fullmatch(r"[-+.\w]*\d[\w.]*", argument):
            result[-1:] = [f"--watch={WATCH_EVERY}", argument]
        elif previous == "--matching" and argument not in MATCHED:
            result[-1:] = ["--matching=seeds", argument]
        else:
            result.append(argument)
    return result


def run(arguments: Sequence[str], console: Console) -> None:
    """Does what the arguments ask for. Raises ReportError, and ConfigError for paths that cannot be expanded."""
    options = parser().parse_args(arranged(arguments))
    for name in (*WRITERS, "out"):
        if (written := getattr(options, name)) is not None:
            setattr(options, name, local_path(written, f"--{name}"))
    folders = [Path(expanded(folder)) for folder in options.folders]
    if not console.is_terminal:
        console.width = 100_000  # nothing is cut off in a file or pipe

    @functools.cache  # --watch finds the same faults again and again
    def warn(fault: str) -> None:
        print(f"warning: {fault}", file=sys.stderr)

    read = functools.partial(read_selected, folders, options.where, options.sort, warn)

    def draw(records: Sequence[Record], matching: Matching = NOT_MATCHED) -> Group:
        counts_first = options.watch is not None and console.is_terminal
        asked = options.metrics
        return table.overview(records, matching, console, counts_first=counts_first, failed=options.failed, asked=asked)

    data_paths = {kind: path for kind in WRITERS if (path := getattr(options, kind))}
    if options.over_seeds and not data_paths:
        raise ReportError(f"--over-seeds: is about files; name one by {', '.join(f'--{kind}' for kind in WRITERS)}")
    if options.watch is not None:
        once = [*data_paths, *["out"] * bool(options.out), *["matching"] * bool(options.matching)]
        if once:
            raise ReportError(f"--watch with {', '.join(f'--{name}' for name in once)}: these are done once; leave out --watch")
        if not 0.1 <= options.watch < float("inf"):
            raise ReportError(f"--watch {options.watch:g}: seconds, at least 0.1")
        with contextlib.suppress(KeyboardInterrupt):
            watch.watch(read, draw, console, options.watch)
        return
    records = read()
    matching = match_runs(records, options.matching, warn, announce) if options.matching else NOT_MATCHED
    console.print(draw(records, matching), soft_wrap=not console.is_terminal)
    rows = table_rows(records, matching, options.over_seeds) if data_paths else []
    for kind, path in data_paths.items():
        print(write_file(path, WRITERS[kind](rows)))
    if options.out:
        from sae_transcoder.reports.plot_files import write_plots  # imports matplotlib and plotly

        write_plots(records, matching, options.out, warn, options.metrics)


def announce(text: str) -> None:
    """Says what goes on while a result is awaited, beside the results."""
    print(text, file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command. Exit code 0: done; 1: what was asked for is not possible, and the message says why."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal's encoding may lack what is in a name
    try:
        run(sys.argv[1:] if arguments is None else arguments, Console(highlight=False))
    except (ReportError, ConfigError) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # of `sae-report | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
