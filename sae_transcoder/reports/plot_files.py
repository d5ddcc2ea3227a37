"""Writes all plots of runs into a folder: png and svg for a paper, and report.html."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from sae_transcoder.reports import page, static_plots
from sae_transcoder.reports.data_files import write_file
from sae_transcoder.reports.errors import ReportError
from sae_transcoder.reports.pareto import TRADEOFFS
from sae_transcoder.reports.plot_data import plotted_coders
from sae_transcoder.run_store.run_records import Record


def write_plots(
    records: Sequence[Record],
    out_dir: Path,
    warn: Callable[[str], None],
    latents: Mapping[tuple[str, str], str] = MappingProxyType({}),
) -> None:
    """Writes the plots, and prints which coders are not in them and where the files are.

    warn is called with the faults of the runs' files. latents: {(run, coder): the address, seen from report.html, of its latents}.
    Raises ReportError where there is nothing to draw, or a file cannot be written.
    """
    coders = plotted_coders(records, warn)
    if num_waiting := sum(record.evaluation is None for record in records):
        print(f"{num_waiting} of {len(records)} runs are not evaluated yet: they are in the training curves only")
    if not coders:
        raise ReportError("no run has been evaluated or has a line of metrics yet: there is nothing to draw")
    num_evaluated = sum(len(record.evaluation.coders) for record in records if record.evaluation)
    if num_without := num_evaluated - len(TRADEOFFS[0].plottable(coders)):
        print(
            f"{num_without} of {num_evaluated} evaluated coders have an L0 of zero or no FVU: they have no place in the Pareto picture"
        )
    for path in [write_file(out_dir / name, content) for name, content in static_plots.draw_files(coders)]:
        print(path)
    print(write_file(out_dir / "report.html", page.report_page(records, coders, latents).encode()))
