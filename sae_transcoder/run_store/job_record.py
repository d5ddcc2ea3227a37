"""What is remembered of a SLURM job across its restarts, in the folder `.slurm` beside its runs: NUMBER.json."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sae_transcoder.process.atomic_files import replace_text

FOLDER = ".slurm"
LINK = "slurm.log"  # in the directory of a run, to the log of its job
PATIENCE = 60.0  # seconds that a job waits for what the command that submitted it has yet to write


@dataclass
class Record:
    """One job: its runs, the settings that say what is done when it ends too early, and what has happened to it so far."""

    runs: list[str]
    """Directories of its runs, absolute."""
    time: str
    """Fields of the config, as set."""
    memory: str | None
    signal_delay: int
    max_timeouts: int | None
    code: str
    """Version of the program that it runs: release and commit."""
    pieces: int = 1
    """Into how many packs the runs are split, one trained after the other."""
    timeouts: int = 0
    """Times that it ran into its time limit."""
    steps: int = 0
    """Optimizer steps made by all runs together when it last did."""
    deaths: int = 0
    """Times that it died in a row without a run having been saved in between."""
    saved: dict[str, float] = field(default_factory=dict)
    """{run: when its training state was written} when it last died."""


def path(folder: Path, number: str) -> Path:
    """The file of a job."""
    return folder / f"{number}.json"


def log(folder: Path, number: str, task: int = 0) -> Path:
    """What a job's task printed, over all its restarts; task 0 has what SLURM said as well."""
    return folder / f"{number}_{task}_log.out"


STARTED = "Starting with JobEnvironment"  # submitit's first line of each start


def said(folder: Path, number: str) -> str:
    """What all tasks of a job, SLURM and its script printed since the job started last."""
    files = sorted(folder.glob(f"{number}_*_log.out"))
    return "\n".join(file.read_text(errors="replace").rpartition(STARTED)[2] for file in files)


def write(folder: Path, number: str, record: Record) -> None:
    """Keeps the record of a job."""
    replace_text(path(folder, number), json.dumps(asdict(record), indent=2) + "\n")


def read(folder: Path, number: str) -> Record:
    """The record of a job, for which it waits a while. Raises FileNotFoundError."""
    end = time.monotonic() + PATIENCE
    while not path(folder, number).exists() and time.monotonic() < end:
        time.sleep(0.2)
    return Record(**json.loads(path(folder, number).read_text()))
