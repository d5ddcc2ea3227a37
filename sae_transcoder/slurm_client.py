"""Asks SLURM through its commands: states of jobs, requeueing, what the cluster offers. Nothing here imports torch."""

import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

JOBS_PER_COMMAND = 500
COMMAND_TIMEOUT = 30.0  # seconds
# A job in any other state has ended.
WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
RUNNING = {"RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"}


@dataclass(frozen=True)
class SlurmJob:
    """A job as SLURM reports it: SLURM's name of its state, and the reason where it waits."""

    state: str
    reason: str = ""

    @property
    def waiting(self) -> bool:
        """Whether the job is in the queue, for the first time or again."""
        return self.state in WAITING

    @property
    def ended(self) -> bool:
        """Whether the job will not run again by itself."""
        return self.state not in WAITING | RUNNING


SlurmJobs = Mapping[str, SlurmJob]
"""{number of a job, as 12 or 12_3: job}; SLURM does not know a missing job any more."""


class SlurmError(Exception):
    """SLURM did not answer, or refused."""


def ask(*command: str) -> str:
    """Runs a SLURM command and returns its output. Raises SlurmError with the command's error message."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"no answer to {command[0]} within {COMMAND_TIMEOUT:g} s") from error
    except OSError as error:
        raise SlurmError(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise SlurmError((done.stderr.strip() or done.stdout.strip()).removeprefix(f"{command[0]}: "))
    return done.stdout.strip()


def current_job() -> str | None:
    """The number of the job that this process belongs to, as 12 or 12_3; None outside of jobs."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def submitted_job() -> str | None:
    """The number of the job that this process belongs to, if this program submitted it; such jobs requeue themselves, others do not."""
    return current_job() if os.environ.get("SUBMITIT_EXECUTOR") == "slurm" else None


def jobs(numbers: Iterable[str]) -> SlurmJobs | None:
    """The jobs with these numbers that SLURM knows: those in the queue, those that ended lately and, with accounting, older ones.

    None where SLURM is not installed or does not answer.
    """
    numbers = list(dict.fromkeys(numbers))
    if not numbers:
        return {}
    if shutil.which("squeue") is None:
        return None
    try:
        queued = jobs_in_queue(numbers)
    except SlurmError:
        return None
    return queued | jobs_in_accounting([number for number in numbers if number not in queued])


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in groups of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))


def array_ids(numbers: Iterable[str]) -> list[str]:
    """Numbers without the index in their array (12_3 becomes 12), each once."""
    return list(dict.fromkeys(number.partition("_")[0] for number in numbers))


def jobs_in_queue(numbers: Sequence[str]) -> dict[str, SlurmJob]:
    """The jobs with these numbers that slurmctld knows. Raises SlurmError where it does not answer."""
    jobs_by_number: dict[str, SlurmJob] = {}
    for some in chunks(array_ids(numbers), JOBS_PER_COMMAND):
        try:
            text = ask("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", f"--jobs={','.join(some)}")
        except SlurmError as error:
            if "Invalid job id" not in str(error):  # SLURM's answer for a single job that it has forgotten
                raise
            continue
        for line in text.splitlines():
            number, state, reason = line.split("|", 2)
            jobs_by_number[number] = SlurmJob(state, "" if reason == "None" else reason)
    return {number: job for number, job in jobs_by_number.items() if number in set(numbers)}


def jobs_in_accounting(numbers: Sequence[str]) -> dict[str, SlurmJob]:
    """The jobs with these numbers that the accounting knows; none where there is no accounting."""
    jobs_by_number: dict[str, SlurmJob] = {}
    if shutil.which("sacct") is None:
        return jobs_by_number
    options = ("--noheader", "--parsable2", "--allocations", "--duplicates", "--format=JobID,State")
    for some in chunks(numbers, JOBS_PER_COMMAND):
        try:
            text = ask("sacct", *options, f"--jobs={','.join(some)}")
        except SlurmError:
            return jobs_by_number
        for line in text.splitlines():  # a requeued job has a line for each start; the last one counts
            number, _, state = line.partition("|")
            jobs_by_number[number] = SlurmJob(state.split()[0])  # "CANCELLED by 1000"
    return jobs_by_number


def job_state(number: str) -> SlurmJob | None:
    """A job as it is now; None where SLURM does not know it or does not answer."""
    return (jobs([number]) or {}).get(number)


def requeue(number: str) -> None:
    """Puts a running job back into the queue. Raises SlurmError where SLURM does not.

    No error where SLURM refuses because the job already waits again, after a preemption for instance.
    """
    try:
        ask("scontrol", "requeue", number)
    except SlurmError:
        job = job_state(number)
        if job is None or not job.waiting:
            raise


def seconds_left(number: str) -> float | None:
    """Seconds until a running job's time limit; None where it has none or SLURM does not tell."""
    try:
        return seconds(ask("squeue", "--noheader", "--states=all", "--format=%L", f"--jobs={number}"))
    except (SlurmError, ValueError):
        return None


TIME = re.compile(
    r"(?:(?P<d>\d+)-(?P<dh>\d+)(?::(?P<dm>\d+)(?::(?P<ds>\d+))?)?|(?:(?:(?P<h>\d+):)?(?P<m>\d+):(?P<s>\d+))|(?P<minutes>\d+))"
)


def seconds(text: str) -> float:
    """Seconds of a duration in sbatch's notation: minutes, minutes:seconds, [days-]hours:minutes:seconds, days-hours[:minutes].

    Raises ValueError for any other text.
    """
    match = TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r}: not a span of time")
    counts = {name: int(value or 0) for name, value in match.groupdict().items()}
    hours = 24 * counts["d"] + counts["dh"] + counts["h"]
    return 3600.0 * hours + 60 * (counts["dm"] + counts["m"] + counts["minutes"]) + counts["ds"] + counts["s"]


MEBIBYTES = {"": 1.0, "K": 2.0**-10, "M": 1.0, "G": 2.0**10, "T": 2.0**20}


def mebibytes(text: str) -> int:
    """An amount of memory in sbatch's notation: a number, in MiB or with K, M, G or T, after which a B may stand. Raises ValueError for anything
    else."""
    match = re.fullmatch(r"(\d+)(?:([KMGT])B?)?", text.upper())
    if match is None:
        raise ValueError(f"{text!r}: not an amount of memory")
    return math.ceil(int(match[1]) * MEBIBYTES[match[2] or ""])


def max_array_size() -> int:
    """The most jobs that one array may have (MaxArraySize). Raises SlurmError."""
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"))
    return int(match[1]) if match else 1001


def partitions() -> list[str]:
    """Names of the cluster's partitions; empty where SLURM does not tell."""
    try:
        return ask("sinfo", "--noheader", "--format=%R").split()
    except SlurmError:
        return []


def node_kinds(partition: str | None) -> list[str]:
    """One description of the hardware for each kind of node in a partition; None: in all partitions."""
    options = [f"--partition={partition}"] if partition else []
    try:
        text = ask("sinfo", "--noheader", *options, "--format=%c CPUs, %m MB, gres %G, features %f")
    except SlurmError:
        return []
    return list(dict.fromkeys(text.splitlines()))
