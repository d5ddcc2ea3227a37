"""NUMBER.json in the folder `.slurm` beside the runs: what a SLURM job must remember across its restarts."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sae_transcoder.process.atomic_files import replace_text
from sae_transcoder.run_store.checked_files import damaged, read_object

FOLDER = ".slurm"
LINK = "slurm.log"  # symbolic link in a run's directory to the log of its job
WAIT = 60.0  # seconds that a job waits for its record, which the command writes after submitting it
START_LINE = "Starting with JobEnvironment"  # submitit's first line of each start


@dataclass
class JobRecord:
    """One job: its runs, the settings that decide what happens when it ends too early, and its history so far."""

    runs: list[str]
    """Directories of its runs, absolute."""
    time: str
    """This and the next three: fields of the config, as set."""
    memory: str | None
    signal_delay: int
    max_timeouts: int | None
    code: str
    """Version of the program that the job runs: release and commit."""
    pieces: int = 1
    """Number of packs that the runs are split into; they are trained one after the other."""
    timeouts: int = 0
    """How often the job reached its time limit."""
    steps: int = 0
    """Optimizer steps of all runs together when it last reached its time limit."""
    deaths: int = 0
    """Consecutive crashes without a new checkpoint of any run."""
    saved: dict[str, float] = field(default_factory=dict)
    """{run: when its training state was last written}, as of the last crash."""


KINDS = {
    "runs": list,
    "time": str,
    "signal_delay": int,
    "code": str,
    "pieces": int,
    "timeouts": int,
    "steps": int,
    "deaths": int,
    "saved": dict,
}
"""{field of JobRecord: its type in the file}, but for those that may be null."""


def record_path(folder: Path, number: str) -> Path:
    """The file that holds a job's record."""
    return folder / f"{number}.json"


def log_path(folder: Path, number: str, task: int = 0) -> Path:
    """The file that holds the output of a job's task over all restarts; that of task 0 holds SLURM's messages too."""
    return folder / f"{number}_{task}_log.out"


def last_output(folder: Path, number: str) -> str:
    """The output of all tasks of a job, of SLURM and of the job's script since the job last started."""
    files = sorted(folder.glob(f"{number}_*_log.out"))
    return "\n".join(file.read_text(errors="replace").rpartition(START_LINE)[2] for file in files)


def write(folder: Path, number: str, record: JobRecord) -> None:
    """Replaces the record of a job."""
    replace_text(record_path(folder, number), json.dumps(asdict(record), indent=2) + "\n")


def read(folder: Path, number: str) -> JobRecord:
    """The record of a job. Waits a while for it to be written. Raises DamagedFile, also where there is none."""
    path, fix = record_path(folder, number), "start the same command again, which submits the runs anew"
    end = time.monotonic() + WAIT
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.2)
    if (values := read_object(path, fix)) is None:
        raise damaged(path, "it is not there", fix)
    faults = [name for name, kind in KINDS.items() if name in values and not isinstance(values[name], kind)]
    if faults or not all(isinstance(run, str) for run in values.get("runs", ())):
        raise damaged(path, f"{', '.join(faults) or 'runs'} of another type", fix)
    try:
        return JobRecord(**values)
    except TypeError as error:  # a name that is missing, or that this version does not know
        raise damaged(path, f"not a job's record of this version: {error}", fix) from error
