"""What a SLURM job's script runs after the job's tasks: requeues the job, or records how its unfinished runs ended.

    python -m sae_transcoder.launch.slurm.job_end FOLDER CODE

FOLDER holds the job's record; CODE is the exit code of srun. A job is requeued after it stopped cleanly (time limit, preemption with a grace
time) or crashed (kill -9, out of memory); SLURM itself would count it as ended. When SLURM takes a job from its node (requeue, preemption
without a grace time, failure of the node), SLURM requeues it, and this is not run.
"""

import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sae_transcoder import slurm_client
from sae_transcoder.launch.crashes import MAX_CRASHES, count_crashes
from sae_transcoder.run_store import job_record, observed_status, status
from sae_transcoder.run_store.checked_files import DamagedFile
from sae_transcoder.run_store.job_record import JobRecord
from sae_transcoder.run_store.observed_status import UNFINISHED
from sae_transcoder.run_store.run_records import read_or_none
from sae_transcoder.run_store.status import State, Status
from sae_transcoder.slurm_client import SlurmError

STOPS = {128 + signal.SIGUSR2, 128 + signal.SIGTERM}
EARLY = 90.0  # seconds by which SLURM's signal may precede the time that was asked for
# Messages of slurmstepd, srun or the kernel about a job that exceeded its memory.
OUT_OF_MEMORY = re.compile(r"oom[-_ ]kill|out of memory|exceeded (job )?memory limit", re.IGNORECASE)
# srun's message about a task that failed, after which it ends the others; and {a signal's name there: its exit code}.
TASK_ENDED = re.compile(
    r"^srun: error: (.*: tasks? [^:]*: (?:Exited with exit code (\d+)|(.*?)(?: \(core dumped\))?))$", re.MULTILINE
)
CODE_OF_SIGNAL = {signal.strsignal(number): 128 + number for number in signal.valid_signals()}


@dataclass(frozen=True)
class JobEndDecision:
    """What follows a job's end. `failed`: {run: why it failed}; `goes_on`: why the other runs continue in the queue, None: they do not."""

    record: JobRecord
    failed: Mapping[Path, str]
    goes_on: str | None = None


def decide_requeue(
    record: JobRecord, left: Mapping[Path, Status], saved: Mapping[str, float], steps: int, code: int, timed_out: bool, output: str
) -> JobEndDecision:
    """Decides whether a job that ended with exit code `code` is requeued.

    left: its unfinished runs; saved: {run: when its state was last written}; steps: optimizer steps of all runs; timed_out: whether the time
    limit was near; output: the log since the job's last start.
    """
    first = TASK_ENDED.search(output)
    if first:  # srun's own code is the highest of all tasks'
        code = int(first[2]) if first[2] else CODE_OF_SIGNAL.get(first[3], code)
    if OUT_OF_MEMORY.search(output):
        return after_out_of_memory(record, left)
    if code in STOPS and timed_out:
        return after_time_limit(record, left, steps)
    if code in STOPS:
        return JobEndDecision(record, {}, "preempted; goes on in the queue")
    if code > 128 and code != 128 + signal.SIGINT:
        return after_crash(record, left, saved, first[1] if first else f"exit code {code}")
    if code == 128 + signal.SIGINT:
        return JobEndDecision(record, {})
    return JobEndDecision(record, dict.fromkeys(left, f"the job ended with exit code {code} before the run did"))


def after_out_of_memory(record: JobRecord, left: Mapping[Path, Status]) -> JobEndDecision:
    """Splits the runs into smaller packs; where each run is alone already, fails those that had begun."""
    limit = f"memory={record.memory or 'null'}"
    if record.pieces < len(left):
        smaller = replace(record, pieces=min(2 * record.pieces, len(left)))
        return JobEndDecision(smaller, {}, f"out of memory ({limit}); goes on in smaller packs")
    begun = [directory for directory, run in left.items() if run.state != State.queued]
    failed = dict.fromkeys(begun or left, f"out of memory: the job was killed with {limit}; raise memory")
    return JobEndDecision(record, failed, "the run before was out of memory" if failed.keys() != left.keys() else None)


def after_time_limit(record: JobRecord, left: Mapping[Path, Status], steps: int) -> JobEndDecision:
    """Requeues the job, unless it has used up max_timeouts or made no step since the last time limit."""
    count = record.timeouts + 1
    changed = replace(record, timeouts=count, steps=steps)
    if record.max_timeouts is not None and count > record.max_timeouts:
        why = f"ran out of time={record.time} {count} times, with max_timeouts={record.max_timeouts}; raise one of them"
        return JobEndDecision(changed, dict.fromkeys(left, why))
    if record.timeouts and steps <= record.steps:
        why = f"time={record.time} does not suffice for one step more; raise time"
        return JobEndDecision(changed, dict.fromkeys(left, why))
    return JobEndDecision(changed, {}, f"ran out of time={record.time}, {count} times so far; goes on in the queue")


def after_crash(record: JobRecord, left: Mapping[Path, Status], saved: Mapping[str, float], how: str) -> JobEndDecision:
    """Requeues the job, unless it has crashed too often without a new checkpoint."""
    changed = replace(record, deaths=count_crashes(record.deaths, record.saved, saved), saved=dict(saved))
    if changed.deaths >= MAX_CRASHES:
        return JobEndDecision(changed, dict.fromkeys(left, f"the job died {MAX_CRASHES} times without coming further ({how})"))
    return JobEndDecision(changed, {}, f"the job died ({how}); goes on in the queue")


def handle_job_end(folder: Path, number: str, code: int) -> int:
    """Requeues the job, or records how its unfinished runs ended. Returns the exit code of the job's script."""
    record = job_record.read(folder, number)
    statuses = {Path(run): read_or_none(status.read, Path(run), print) for run in record.runs}
    left = {directory: run for directory, run in statuses.items() if run is not None and run.state in UNFINISHED}
    if left:
        remaining = slurm_client.seconds_left(number)
        decision = decide_requeue(
            record,
            left,
            {str(directory): status.saved_at(directory) for directory in left},
            sum(run.step for run in statuses.values() if run is not None),
            code,
            remaining is not None and remaining <= record.signal_delay + EARLY,
            job_record.last_output(folder, number),
        )
        job_record.write(folder, number, decision.record)
        for directory, why in decision.failed.items():
            observed_status.mark(directory, State.failed, why)
        others = [directory for directory in left if directory not in decision.failed]
        if decision.goes_on and others:
            requeue(number, others, decision.goes_on)
    ends = [run.state for directory in statuses if (run := read_or_none(status.read, directory, print)) is not None]
    return code or int(any(state in (State.failed, State.cancelled) for state in ends))


def requeue(number: str, directories: Sequence[Path], why: str) -> None:
    """Puts the job back into the queue and records that its runs wait; if SLURM refuses, records that they are interrupted."""
    print(f"{number}: {why}", flush=True)
    for directory in directories:
        observed_status.mark(directory, State.preempted, why)
    try:
        slurm_client.requeue(number)
    except SlurmError as error:
        for directory in directories:
            fault = f"{why}, but SLURM did not put the job back ({error}); start the same command again"
            observed_status.mark(directory, State.interrupted, fault)


def main() -> None:
    """Run by the job's script at its end; ends with the script's exit code."""
    try:
        sys.exit(handle_job_end(Path(sys.argv[1]), slurm_client.current_job() or "", int(sys.argv[2])))
    except DamagedFile as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
