"""What became of runs: status.json holds what a run last said of itself; its lock, its heartbeat and SLURM tell whether that still holds."""

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import Timeout

from sae_transcoder import slurm_client
from sae_transcoder.run_store import status
from sae_transcoder.run_store.status import State, Status
from sae_transcoder.slurm_client import Job, Jobs

STALE_AFTER = 900.0  # seconds without a heartbeat after which a run on another machine counts as interrupted
OPEN = (State.queued, State.running, State.interrupted, State.preempted)  # states that another process may have overtaken
TRIES = 3  # times that a run's process, or its job, may die in a row without its state having been saved in between
# What SLURM's end of a job means for a run of it that had not ended by itself.
ENDS = {
    "CANCELLED": (State.cancelled, "SLURM job {job} was cancelled"),
    "OUT_OF_MEMORY": (State.failed, "SLURM job {job} was killed for want of memory; raise memory"),
    "TIMEOUT": (State.failed, "SLURM job {job} ran out of time before the run could save; raise signal_delay or time"),
    "DEADLINE": (State.failed, "SLURM job {job} missed its deadline"),
    "NODE_FAIL": (State.interrupted, "the node of SLURM job {job} failed"),
    "BOOT_FAIL": (State.interrupted, "the node of SLURM job {job} failed to start"),
    "PREEMPTED": (State.interrupted, "SLURM job {job} was preempted and not put back into the queue"),
    "LAUNCH_FAILED": (State.failed, "SLURM job {job} could not be launched"),
}


@dataclass(frozen=True)
class Standing:
    """A run's status as it is now, and whether it trains or will be trained without anybody's doing."""

    status: Status
    goes_on: bool


def observe(directory: Path, found: Status, jobs: Jobs | None = None) -> Standing:
    """What became of a run. jobs: what SLURM said of the runs' jobs; None: it could not be asked."""
    if found.state not in OPEN:
        return Standing(found, False)
    if found.slurm_job and jobs is not None:
        return in_slurm(directory, found, jobs.get(found.slurm_job))
    if found.state != State.running:
        return Standing(found, False)
    if alive(directory, found):
        return Standing(found, True)
    idle = max(0.0, time.time() - found.heartbeat)
    gone = f"process {found.pid} on {found.host} is gone, last heard of {duration(idle)} ago"
    return Standing(replace(found, state=State.interrupted, why=gone), False)


def in_slurm(directory: Path, found: Status, job: Job | None) -> Standing:
    """The same for a run of a SLURM job; None: of one that SLURM does not know any more."""
    if job is not None and not job.ended:
        if job.waiting and found.state != State.interrupted:
            again = found.state != State.queued
            waits = f"SLURM job {found.slurm_job} waits in the queue" + " again" * again + f" ({job.reason})" * bool(job.reason)
            return Standing(replace(found, state=State.preempted if again else State.queued, why=waits), True)
        return Standing(found, found.state != State.interrupted)
    if found.state == State.running and found.host == socket.gethostname() and alive(directory, found):
        return Standing(found, True)  # its end is a moment away
    if found.state == State.interrupted:
        return Standing(found, False)
    usual = "SLURM job {job} has ended" if job else "SLURM does not know job {job} any more"
    state, why = ENDS.get(job.state if job else "", (State.interrupted, usual))
    why = why.format(job=found.slurm_job) + (f" ({job.state})" if job and job.state not in ENDS else "")
    if found.state == State.queued:
        # A job that fails leaves its word in status.json, or SLURM's; of one that was cancelled while it waited nobody may know.
        state = State.cancelled if job is None or state == State.cancelled else State.failed
        return Standing(replace(found, state=state, why=f"never started: {why}"), False)
    if state == State.interrupted and found.why:  # what the run said itself is more
        why = found.why
    return Standing(replace(found, state=state, why=why), False)


def observe_all(statuses: Mapping[Path, Status]) -> dict[Path, Standing]:
    """What became of runs {directory: status}; SLURM is asked once for all of them."""
    asked = {found.slurm_job for found in statuses.values() if found.slurm_job and found.state in OPEN}
    jobs = slurm_client.jobs(sorted(asked)) if asked else None
    return {directory: observe(directory, found, jobs) for directory, found in statuses.items()}


def read(directory: Path) -> Standing | None:
    """What became of one run; None where there is none. Raises ValueError where its status cannot be read."""
    found = status.read(directory)
    return None if found is None else observe_all({directory: found})[directory]


def to_do(found: Standing | None) -> str:
    """What a command has to do for a run: new, again (it failed or was stopped), done, running or queued."""
    if found is None:
        return "new"
    if found.goes_on:
        return "queued" if found.status.state in (State.queued, State.preempted) else "running"
    state = found.status.state
    return "new" if state == State.queued else "done" if state == State.done else "again"


def nothing_to_do(directory: Path) -> str | None:
    """Why the run of a directory need not be started: it is done, or goes on elsewhere. None: it is to be trained."""
    found = read(directory)
    what = to_do(found)
    if found is None or what in ("new", "again"):
        return None
    seen = found.status
    if what == "done":
        return f"{directory}: already done ({seen.step} steps); nothing to do"
    if what == "queued":
        return f"{directory}: {seen.why or f'waits in SLURM job {seen.slurm_job}'}; not started again"
    return f"{directory}: runs now (process {seen.pid} on {seen.host}, step {seen.step} of {seen.total}); not started again"


def mark(directory: Path, state: State, why: str) -> None:
    """Says in status.json what became of a run whose process can no longer say it; not of one that has ended by itself or goes on."""
    try:
        with status.lock(directory).acquire(timeout=status.LOOKING):
            found = status.read(directory)
            if found is not None and found.state in OPEN:
                found.state, found.why = state, why
                status.write(directory, found)
    except Timeout:
        pass


def alive(directory: Path, found: Status) -> bool:
    """Whether the process of a run that says `running` lives: by the run's lock, on another machine by its heartbeat."""
    if found.host == socket.gethostname():
        try:
            return locked(directory)
        except OSError:  # the folder is not ours to lock
            pass
    return time.time() - found.heartbeat < STALE_AFTER


def locked(directory: Path) -> bool:
    """Whether a process holds a run's lock."""
    for pause in (0.005, 0.0):  # another one that only looks holds it for an instant
        try:
            with status.lock(directory):
                return False
        except Timeout:
            time.sleep(pause)
    return True


def duration(seconds: float) -> str:
    """A span of time in its two largest units: 3 h 12 min."""
    for unit, below, name, name_below in [(86_400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")]:
        if seconds >= unit:
            return f"{int(seconds // unit)} {name} {int(seconds % unit // below):02d} {name_below}"
    return f"{seconds:.0f} s"
