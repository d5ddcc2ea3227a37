"""What a command says of the jobs that it has submitted, and how it waits for them."""

import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from rich.console import Console, RenderableType

from sae_transcoder import slurm_client
from sae_transcoder.config import Config, run_dir
from sae_transcoder.launch.slurm import submit as slurm_submit
from sae_transcoder.process import code_version
from sae_transcoder.process.stop_signal import held_back
from sae_transcoder.reports import watch
from sae_transcoder.reports.table import print_runs, runs_table, state_counts
from sae_transcoder.run_store import records as run_records
from sae_transcoder.run_store.records import Record
from sae_transcoder.run_store.status import State

EVERY = 10.0  # seconds between two looks; each asks slurmctld once


def tell(numbers: Sequence[str], folder: Path, console: Console) -> None:
    """Which jobs were submitted, what code they run, how to watch them and how to cancel them."""
    arrays = slurm_client.whole(numbers)
    kind = "job" if len(numbers) == 1 else "array" if len(arrays) == 1 else "arrays"
    console.print(
        f"submitted {len(numbers)} job{'s' * (len(numbers) > 1)}: {kind} {', '.join(arrays)}\n"
        f"code: {code_version.current()}\n"
        f"watch: sae-report {folder} --watch\n"
        f"cancel: scancel {' '.join(arrays)}",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def run(packs: Sequence[Sequence[Config]], runs: Collection[Path], folder: Path, console: Console, *, wait: bool) -> None:
    """Submits a job for each pack and, with `wait`, shows the `runs` below `folder` until none of them goes on.

    After Ctrl-C it says that the jobs do go on, and ends with exit code 130. Raises ConfigError where SLURM refuses.
    """
    here = {directory.resolve() for directory in runs}

    def look() -> Sequence[Record]:
        return [record for record in run_records.read_all([folder], lambda _: None) if record.directory.resolve() in here]

    def draw(records: Sequence[Record]) -> RenderableType:
        return runs_table(records, console, counts_first=True) if console.is_terminal else state_counts(records)

    try:
        if packs:
            with held_back():  # what is submitted is also noted
                tell(slurm_submit.submit(packs), folder, console)
        if wait:
            watch.watch(look, draw, console, EVERY, transient=True)
    except KeyboardInterrupt:
        numbers = slurm_client.whole(record.status.slurm_job for record in look() if record.goes_on and record.status.slurm_job)
        console.print(
            f"the jobs go on; watch them: sae-report {folder} --watch; cancel them: scancel {' '.join(sorted(numbers, key=int))}",
            markup=False, soft_wrap=True,
        )  # fmt: skip
        sys.exit(130)


def single(cfg: Config, console: Console) -> None:
    """Submits one run; with `wait`, stays until it has ended, with exit code 1 where it is not done then. Raises ConfigError."""
    directory = run_dir(cfg)
    run([[cfg]], [directory], directory, console, wait=cfg.wait)
    if cfg.wait:
        records = run_records.read_all([directory], lambda _: None)
        print_runs(records, console)
        if any(record.status.state != State.done for record in records):
            sys.exit(1)
