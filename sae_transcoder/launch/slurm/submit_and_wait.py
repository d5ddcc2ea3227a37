"""Submits runs to SLURM, prints the jobs' numbers, and waits for the runs if asked to."""

import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from rich.console import Console, RenderableType

from sae_transcoder import slurm_client
from sae_transcoder.config import Config, run_dir
from sae_transcoder.launch.slurm.submit import submit_packs
from sae_transcoder.process import code_version
from sae_transcoder.process.stop_signal import held_back
from sae_transcoder.reports import watch
from sae_transcoder.reports.table import print_runs, runs_table, state_counts
from sae_transcoder.run_store import run_records
from sae_transcoder.run_store.run_records import Record
from sae_transcoder.run_store.status import State

POLL_EVERY = 10.0  # seconds; slurmctld is asked once each time


def print_submitted(numbers: Sequence[str], folder: Path, console: Console) -> None:
    """Prints which jobs were submitted, what code they run, and how to watch and cancel them."""
    arrays = slurm_client.array_ids(numbers)
    kind = "job" if len(numbers) == 1 else "array" if len(arrays) == 1 else "arrays"
    console.print(
        f"submitted {len(numbers)} job{'s' * (len(numbers) > 1)}: {kind} {', '.join(arrays)}\n"
        f"code: {code_version.current()}\n"
        f"watch: sae-report {folder} --watch\n"
        f"cancel: scancel {' '.join(arrays)}",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def submit_and_wait(
    packs: Sequence[Sequence[Config]], runs: Collection[Path], folder: Path, console: Console, *, wait: bool
) -> None:
    """Submits a job for each pack and, with `wait`, shows the `runs` below `folder` until none of them waits or trains.

    After Ctrl-C prints that the jobs continue, and ends with exit code 130. Raises ConfigError if SLURM refuses.
    """
    directories = {directory.resolve() for directory in runs}

    def read_records() -> Sequence[Record]:
        return [record for record in run_records.read_all([folder], lambda _: None) if record.directory.resolve() in directories]

    def draw(records: Sequence[Record]) -> RenderableType:
        return runs_table(records, console, counts_first=True) if console.is_terminal else state_counts(records)

    try:
        if packs:
            with held_back():  # so that each submitted job is also recorded
                print_submitted(submit_packs(packs), folder, console)
        if wait:
            watch.watch(read_records, draw, console, POLL_EVERY, transient=True)
    except KeyboardInterrupt:
        waited_for = [record.status.slurm_job for record in read_records() if record.goes_on and record.status.slurm_job]
        numbers = slurm_client.array_ids(waited_for)
        console.print(
            f"the jobs go on; watch them: sae-report {folder} --watch; cancel them: scancel {' '.join(sorted(numbers, key=int))}",
            markup=False, soft_wrap=True,
        )  # fmt: skip
        sys.exit(130)


def submit_run(cfg: Config, console: Console) -> None:
    """Submits one run. With `wait`, waits for its end, with exit code 1 if it is not done then. Raises ConfigError if SLURM refuses."""
    directory = run_dir(cfg)
    submit_and_wait([[cfg]], [directory], directory, console, wait=cfg.wait)
    if cfg.wait:
        records = run_records.read_all([directory], lambda _: None)
        print_runs(records, console)
        if any(record.status.state != State.done for record in records):
            sys.exit(1)
