"""Writes all plots of runs into a folder: png and svg for a paper, and report.html."""

from collections.abc import Callable, Sequence
from pathlib import Path

from sae_transcoder.reports import page, static_plots
from sae_transcoder.reports.data_files import write_file
from sae_transcoder.reports.errors import ReportError
from sae_transcoder.reports.matching import Matching
from sae_transcoder.reports.pareto import TRADEOFFS
from sae_transcoder.reports.plot_data import plotted_coders
from sae_transcoder.reports.seed_groups import CoderPlace, seed_groups
from sae_transcoder.reports.seed_means import means_over_seeds
from sae_transcoder.run_store import latents_pass
from sae_transcoder.run_store.checked_files import DamagedFile
from sae_transcoder.run_store.run_records import Record


def write_plots(
    records: Sequence[Record],
    matching: Matching,
    out_dir: Path,
    warn: Callable[[str], None],
    asked: Sequence[str] = (),
) -> None:
    """Writes the plots, and prints which coders are not in them and where the files are. matching: the latents that were matched, for the page;
    asked: metrics beside the usual ones, for its table.

    Where sae-latents has described latents of the runs, their page is written too, and a click on a coder of report.html leads there.
    warn is called with the faults of the runs' files.
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
    shown = [*coders, *means_over_seeds(coders, seed_groups(records), matching)]
    for path in [write_file(out_dir / name, content) for name, content in static_plots.draw_files(shown)]:
        print(path)
    latents = write_latents(records, out_dir, warn)
    print(write_file(out_dir / "report.html", page.report_page(records, shown, matching, latents, asked).encode()))


def write_latents(records: Sequence[Record], out_dir: Path, warn: Callable[[str], None]) -> dict[CoderPlace, str]:
    """Writes the page of the runs' latents into latents/ of the folder: {coder: its address there, seen from the folder}; nothing where none
    are described."""
    passes = {}
    for record in records:
        folder = latents_pass.folder_of(record.directory / "coders", record.directory)
        try:
            if (found := latents_pass.read_pass(folder)) is not None:
                passes[record.directory] = (record.name, folder, found)
        except DamagedFile as fault:
            warn(str(fault))
    if not passes:
        return {}
    from sae_transcoder.reports.latents_page.page import coder_link, write_page  # imports pyarrow

    index = write_page([(name, folder) for name, folder, _ in passes.values()], out_dir / latents_pass.FOLDER)
    print(index)
    address = index.relative_to(out_dir).as_posix()
    return {
        (directory, coder.name): address + coder_link(name, coder.name)
        for directory, (name, _, found) in passes.items()
        for coder in found.coders
    }
