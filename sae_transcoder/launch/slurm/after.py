"""What a SLURM job's script does once its tasks have ended: back into the queue, or the truth about the runs that are left.

    python -m sae_transcoder.launch.slurm.after FOLDER CODE

CODE is the exit code of srun. A job that stopped in order (time limit, preemption with grace) or died (kill -9, out of memory) goes back into
the queue; without this, SLURM would call it ended. Where SLURM itself takes a job from its node (requeue, preemption
without grace, a node's failure) it also puts it back, and this is not reached.
"""

import re
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sae_transcoder import slurm_client
from sae_transcoder.run_store import job_record, observed_status, status
from sae_transcoder.run_store.job_record import Record
from sae_transcoder.run_store.observed_status import OPEN, TRIES
from sae_transcoder.run_store.status import State, Status
from sae_transcoder.slurm_client import SlurmError

STOPS = {128 + signal.SIGUSR2, 128 + signal.SIGTERM}
EARLY = 90.0  # seconds that SLURM's signal may come before it was asked for
# What slurmstepd, srun or the kernel say of a job that had too little memory.
NO_MEMORY = re.compile(r"oom[-_ ]kill|out of memory|exceeded (job )?memory limit", re.IGNORECASE)
# How srun says that a task ended badly, upon which it ends the others, and what exit code each signal's name stands for.
ENDED = re.compile(r"^srun: error: (.*: tasks? [^:]*: (?:Exited with exit code (\d+)|(.*?)(?: \(core dumped\))?))$", re.MULTILINE)
SIGNALED = {signal.strsignal(number): 128 + number for number in signal.valid_signals()}


@dataclass(frozen=True)
class JobEndDecision:
    """What becomes of a job: which runs have failed and why, and why the others go on in the queue; None: they do not."""

    record: Record
    failed: Mapping[Path, str]
    goes_on: str | None = None


def decide_requeue(
    record: Record, left: Mapping[Path, Status], saved: Mapping[str, float], steps: int, code: int, timed_out: bool, said: str
) -> JobEndDecision:
    """The verdict on a job that ended with `code` while the runs `left` were not done.

    saved: {run: when its state was last written}; steps: optimizer steps of all runs; timed_out: the time limit was near; said: the log
    since the job started.
    """
    first = ENDED.search(said)
    if first:  # srun's own code is the highest of all tasks'
        code = int(first[2]) if first[2] else SIGNALED.get(first[3], code)
    begun = {directory: found for directory, found in left.items() if found.state != State.queued}
    if NO_MEMORY.search(said):
        limit = f"memory={record.memory or 'null'}"
        if record.pieces < len(left):
            return JobEndDecision(
                replace(record, pieces=min(2 * record.pieces, len(left))), {}, f"out of memory ({limit}); goes on in smaller packs"
            )
        blamed = dict.fromkeys(begun or left, f"out of memory: the job was killed with {limit}; raise memory")
        return JobEndDecision(record, blamed, "the run before was out of memory" if blamed.keys() != left.keys() else None)
    if code in STOPS and timed_out:
        count = record.timeouts + 1
        changed = replace(record, timeouts=count, steps=steps)
        if record.max_timeouts is not None and count > record.max_timeouts:
            why = f"ran out of time={record.time} {count} times, with max_timeouts={record.max_timeouts}; raise one of them"
            return JobEndDecision(changed, dict.fromkeys(left, why))
        if record.timeouts and steps <= record.steps:
            return JobEndDecision(
                changed, dict.fromkeys(left, f"time={record.time} does not suffice for one step more; raise time")
            )
        return JobEndDecision(changed, {}, f"ran out of time={record.time}, {count} times so far; goes on in the queue")
    if code in STOPS:
        return JobEndDecision(record, {}, "preempted; goes on in the queue")
    if code > 128 and code != 128 + signal.SIGINT:
        how = first[1] if first else f"exit code {code}"
        changed = replace(record, deaths=1 if saved != record.saved else record.deaths + 1, saved=dict(saved))
        if changed.deaths >= TRIES:
            return JobEndDecision(changed, dict.fromkeys(left, f"the job died {TRIES} times without coming further ({how})"))
        return JobEndDecision(changed, {}, f"the job died ({how}); goes on in the queue")
    if code == 128 + signal.SIGINT:
        return JobEndDecision(record, {})
    return JobEndDecision(record, dict.fromkeys(left, f"the job ended with exit code {code} before the run did"))


def handle_job_end(folder: Path, number: str, code: int) -> int:
    """Says in status.json what became of the job's runs, and puts it back into the queue if need be; the script's exit code."""
    record = job_record.read(folder, number)
    seen = {Path(run): status.read(Path(run)) for run in record.runs}
    left = {directory: found for directory, found in seen.items() if found is not None and found.state in OPEN}
    if left:
        remaining = slurm_client.seconds_left(number)
        verdict = decide_requeue(
            record,
            left,
            {str(directory): status.saved_at(directory) for directory in left},
            sum(found.step for found in seen.values() if found is not None),
            code,
            remaining is not None and remaining <= record.signal_delay + EARLY,
            job_record.said(folder, number),
        )
        job_record.write(folder, number, verdict.record)
        for directory, why in verdict.failed.items():
            observed_status.mark(directory, State.failed, why)
        going_on = [directory for directory in left if directory not in verdict.failed]
        if verdict.goes_on and going_on:
            print(f"{number}: {verdict.goes_on}", flush=True)
            for directory in going_on:
                observed_status.mark(directory, State.preempted, verdict.goes_on)
            try:
                slurm_client.requeue(number)
            except SlurmError as error:
                why = f"{verdict.goes_on}, but SLURM did not put the job back ({error}); start the same command again"
                for directory in going_on:
                    observed_status.mark(directory, State.interrupted, why)
    ends = [found.state for run in record.runs if (found := status.read(Path(run))) is not None]
    return code or int(any(state in (State.failed, State.cancelled) for state in ends))


def main() -> None:
    """What the job's script runs at its end; ends with the script's exit code."""
    sys.exit(handle_job_end(Path(sys.argv[1]), slurm_client.here() or "", int(sys.argv[2])))


if __name__ == "__main__":
    main()
