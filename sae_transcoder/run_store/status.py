"""status.json: the state that a run last reported of itself. Nothing here imports torch."""

import json
import os
import socket
import time
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from filelock import FileLock

from sae_transcoder import slurm_client
from sae_transcoder.process.atomic_files import replace_text
from sae_transcoder.run_store.checked_files import damaged, is_integer, is_number, printable, read_object

NAME = "status.json"
FIX = "restore it from a copy, or choose another run_name or save_dir"
LOCK_TIMEOUT = 1.0  # seconds to wait for a lock held by a liveness check


class State(StrEnum):
    queued = "queued"
    running = "running"
    interrupted = "interrupted"
    preempted = "preempted"
    failed = "failed"
    cancelled = "cancelled"
    done = "done"


@dataclass
class Status:
    """One run's state. `step`, `total`: optimizer steps; `why`: the reason of a failure; `heartbeat`: seconds since the epoch; `slurm_job`:
    number of the job, submitted by this program, in which the run waits or trains, as 12 or 12_3."""

    state: State
    signature: str
    step: int = 0
    total: int = 0
    tokens: int = 0
    tokens_per_s: float = 0.0
    why: str | None = None
    heartbeat: float = field(default_factory=time.time)
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    slurm_job: str | None = field(default_factory=slurm_client.submitted_job)


def state_path(directory: Path) -> Path:
    """The file of a run's training state."""
    return directory / "resume" / "state.pt"


def saved_at(directory: Path) -> float:
    """When a run's training state was last written, in seconds since the epoch; 0 where there is none."""
    path = state_path(directory)
    return path.stat().st_mtime if path.exists() else 0.0


def lock(directory: Path) -> FileLock:
    """The lock that the process training a run holds as long as it lives; the system releases the locks of a dead process."""
    return FileLock(directory / ".lock", timeout=0)


def read(directory: Path) -> Status | None:
    """The status kept in a run's directory, each value of its type; None where there is none. Raises DamagedFile."""
    path = directory / NAME
    if (values := read_object(path, FIX)) is None:
        return None
    try:
        reported = Status(**(values | {"state": State(values["state"])}))
    except (ValueError, TypeError, KeyError) as error:
        raise damaged(path, f"not a status file of this version: {error}", FIX) from error
    invalid = [name for name in ("step", "total", "tokens") if not is_integer(getattr(reported, name))]
    invalid += [name for name in ("tokens_per_s", "heartbeat") if not is_number(getattr(reported, name))]
    if invalid:
        raise damaged(path, f"{', '.join(invalid)} not a number", FIX)
    why, job = (None if value is None else printable(str(value)) for value in (reported.why, reported.slurm_job))
    return replace(reported, why=why, slurm_job=job)


def write(directory: Path, status: Status) -> None:
    """Replaces status.json."""
    replace_text(directory / NAME, json.dumps(asdict(status), indent=2) + "\n")
