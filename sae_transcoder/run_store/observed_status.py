"""The state that a run is really in: status.json holds its last report; the run's lock, its heartbeat and SLURM tell whether it still holds."""

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from filelock import Timeout

from sae_transcoder import slurm_client
from sae_transcoder.run_store import status
from sae_transcoder.run_store.checked_files import DamagedFile
from sae_transcoder.run_store.status import State, Status
from sae_transcoder.slurm_client import SlurmJob, SlurmJobs

STALE_AFTER = 900.0  # seconds without a heartbeat after which a run on another machine counts as interrupted
UNFINISHED = (State.queued, State.running, State.interrupted, State.preempted)  # status.json may be out of date only in these


class NextAction(StrEnum):
    """What a command does about a run; the value is how the sweep's first line counts it."""

    done = "done"
    running = "running"
    queued = "queued"
    resume = "to go on"  # it failed or was stopped
    start = "new"
    refused = "refused"

    @property
    def trains(self) -> bool:
        """Whether the run is to be trained."""
        return self in (NextAction.start, NextAction.resume)


@dataclass(frozen=True)
class ObservedStatus:
    """A run's status as it is now. `goes_on`: whether the run trains, or will be trained without anyone starting it again."""

    status: Status
    goes_on: bool


# {how a SLURM job ended: (new state of a run of it that had begun, new state of one that was still queued, why)}
JOB_ENDS = {
    "CANCELLED": (State.cancelled, State.cancelled, "SLURM job {job} was cancelled"),
    "OUT_OF_MEMORY": (State.failed, State.failed, "SLURM job {job} was killed for want of memory; raise memory"),
    "TIMEOUT": (
        State.failed,
        State.failed,
        "SLURM job {job} ran out of time before the run could save; raise signal_delay or time",
    ),
    "DEADLINE": (State.failed, State.failed, "SLURM job {job} missed its deadline"),
    "NODE_FAIL": (State.interrupted, State.failed, "the node of SLURM job {job} failed"),
    "BOOT_FAIL": (State.interrupted, State.failed, "the node of SLURM job {job} failed to start"),
    "PREEMPTED": (State.interrupted, State.failed, "SLURM job {job} was preempted and not put back into the queue"),
    "LAUNCH_FAILED": (State.failed, State.failed, "SLURM job {job} could not be launched"),
}
OTHER_END = (State.interrupted, State.failed, "SLURM job {job} has ended ({state})")
# A job that fails leaves a reason in status.json or with SLURM; one that was cancelled in the queue may leave none.
UNKNOWN_JOB = (State.interrupted, State.cancelled, "SLURM does not know job {job} any more")


def observe(directory: Path, reported: Status, jobs: SlurmJobs | None = None) -> ObservedStatus:
    """Corrects the status that a run reported last. jobs: the SLURM jobs of the runs; None where SLURM could not be asked."""
    if reported.state not in UNFINISHED:
        return ObservedStatus(reported, False)
    if reported.slurm_job and jobs is not None:
        return observe_slurm_run(directory, reported, jobs.get(reported.slurm_job))
    if reported.state != State.running:
        return ObservedStatus(reported, False)
    if is_alive(directory, reported):
        return ObservedStatus(reported, True)
    idle = max(0.0, time.time() - reported.heartbeat)
    gone = f"process {reported.pid} on {reported.host} is gone, last heard of {duration(idle)} ago"
    return ObservedStatus(replace(reported, state=State.interrupted, why=gone), False)


def observe_slurm_run(directory: Path, reported: Status, job: SlurmJob | None) -> ObservedStatus:
    """Corrects the status of an unfinished run of a SLURM job. job: None where SLURM does not know it any more."""
    if reported.state == State.interrupted:
        return ObservedStatus(reported, False)
    if job is not None and job.waiting:
        again = reported.state != State.queued
        why = f"SLURM job {reported.slurm_job} waits in the queue" + " again" * again + f" ({job.reason})" * bool(job.reason)
        return ObservedStatus(replace(reported, state=State.preempted if again else State.queued, why=why), True)
    if job is not None and not job.ended:
        return ObservedStatus(reported, True)
    if reported.state == State.running and reported.host == socket.gethostname() and is_alive(directory, reported):
        return ObservedStatus(reported, True)  # it is about to end
    if_begun, if_queued, text = UNKNOWN_JOB if job is None else JOB_ENDS.get(job.state, OTHER_END)
    why = text.format(job=reported.slurm_job, state=job.state if job else "")
    if reported.state == State.queued:
        return ObservedStatus(replace(reported, state=if_queued, why=f"never started: {why}"), False)
    if if_begun == State.interrupted and reported.why:  # the run's own reason says more
        why = reported.why
    return ObservedStatus(replace(reported, state=if_begun, why=why), False)


def observe_all(statuses: Mapping[Path, Status]) -> dict[Path, ObservedStatus]:
    """Corrects the statuses of runs {directory: status}; asks SLURM once for all of them."""
    numbers = {reported.slurm_job for reported in statuses.values() if reported.slurm_job and reported.state in UNFINISHED}
    jobs = slurm_client.jobs(sorted(numbers)) if numbers else None
    return {directory: observe(directory, reported, jobs) for directory, reported in statuses.items()}


def read(directory: Path) -> ObservedStatus | None:
    """The corrected status of one run; None where there is no run. Raises DamagedFile where its status.json cannot be read."""
    reported = status.read(directory)
    return None if reported is None else observe_all({directory: reported})[directory]


def next_action(observed: ObservedStatus | None) -> NextAction:
    """What a command does about a run; None: there is no run yet."""
    if observed is None:
        return NextAction.start
    state = observed.status.state
    if observed.goes_on:
        return NextAction.queued if state in (State.queued, State.preempted) else NextAction.running
    return {State.queued: NextAction.start, State.done: NextAction.done}.get(state, NextAction.resume)


def nothing_to_do(directory: Path) -> str | None:
    """Why the run of a directory need not be started: it is done, or trains elsewhere. None where it is to be trained."""
    observed = read(directory)
    action = next_action(observed)
    if observed is None or action.trains:
        return None
    run = observed.status
    if action == NextAction.done:
        return f"{directory}: already done ({run.step} steps); nothing to do"
    if action == NextAction.queued:
        return f"{directory}: {run.why or f'waits in SLURM job {run.slurm_job}'}; not started again"
    return f"{directory}: runs now (process {run.pid} on {run.host}, step {run.step} of {run.total}); not started again"


def mark(directory: Path, state: State, why: str) -> None:
    """Writes how a run ended into status.json, where the run's process no longer can. Leaves finished and living runs alone."""
    try:
        with status.lock(directory).acquire(timeout=status.LOCK_TIMEOUT):
            reported = status.read(directory)
            if reported is not None and reported.state in UNFINISHED:
                reported.state, reported.why = state, why
                status.write(directory, reported)
    except (Timeout, DamagedFile):  # a file that cannot be read is left as it is, and every command names it
        pass


def is_alive(directory: Path, reported: Status) -> bool:
    """Whether the process of a running run lives: by the run's lock, on another machine by its heartbeat."""
    if reported.host == socket.gethostname():
        try:
            return is_locked(directory)
        except OSError:  # the folder belongs to somebody else
            pass
    return time.time() - reported.heartbeat < STALE_AFTER


def is_locked(directory: Path) -> bool:
    """Whether a process holds a run's lock."""
    for pause in (0.005, 0.0):  # another liveness check holds it for an instant
        try:
            with status.lock(directory):
                return False
        except Timeout:
            time.sleep(pause)
    return True


def duration(seconds: float) -> str:
    """A duration in its two largest units, such as 3 h 12 min."""
    for unit, smaller_unit, name, smaller_name in [(86_400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")]:
        if seconds >= unit:
            return f"{int(seconds // unit)} {name} {int(seconds % unit // smaller_unit):02d} {smaller_name}"
    return f"{seconds:.0f} s"
