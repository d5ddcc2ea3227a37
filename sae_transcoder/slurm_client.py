"""What SLURM says and is told by its commands: the state of jobs, requeueing, what the cluster allows. Nothing here imports torch."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

ASKED_AT_ONCE = 500  # jobs named in one command
PATIENCE = 30.0  # seconds that a command of SLURM's may take
# States of a job that waits, runs or goes back to the queue; all others are ends.
WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
RUNNING = {"RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"}


@dataclass(frozen=True)
class Job:
    """A job as SLURM knows it: its state by SLURM's name, and why it waits, where it does."""

    state: str
    reason: str = ""

    @property
    def waiting(self) -> bool:
        """Whether it is in the queue, for the first time or again."""
        return self.state in WAITING

    @property
    def ended(self) -> bool:
        """Whether it will not run any more by itself."""
        return self.state not in WAITING | RUNNING


Jobs = Mapping[str, Job]
"""{job's number, as 12 or 12_3: ...}; a job that is not there is one that SLURM does not know any more."""


class SlurmError(Exception):
    """SLURM did not answer, or refused."""


def ask(*command: str) -> str:
    """What a command of SLURM's prints. Raises SlurmError with what it complains of."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"no answer to {command[0]} within {PATIENCE:g} s") from error
    except OSError as error:
        raise SlurmError(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise SlurmError((done.stderr.strip() or done.stdout.strip()).removeprefix(f"{command[0]}: "))
    return done.stdout.strip()


def here() -> str | None:
    """The number of the job that this process is part of, 12 or 12_3; None outside of jobs."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def submitted() -> str | None:
    """The same, of a job that this program has submitted: such jobs come back by themselves, others are their owner's."""
    return here() if os.environ.get("SUBMITIT_EXECUTOR") == "slurm" else None


def jobs(numbers: Iterable[str]) -> Jobs | None:
    """The jobs of these numbers that SLURM knows: those of the queue, those that ended lately and, with accounting, long ago.

    None where SLURM cannot be asked: on a machine without it, or while it does not answer.
    """
    wanted = list(dict.fromkeys(numbers))
    if not wanted:
        return {}
    if shutil.which("squeue") is None:
        return None
    try:
        found = in_queue(wanted)
    except SlurmError:
        return None
    return found | in_accounts([number for number in wanted if number not in found])


def portions(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    """The items in groups of at most so many."""
    return (items[start : start + most] for start in range(0, len(items), most))


def whole(numbers: Iterable[str]) -> list[str]:
    """The numbers of whole arrays, and of jobs of none, that jobs belong to; each once."""
    return list(dict.fromkeys(number.partition("_")[0] for number in numbers))


def in_queue(numbers: Sequence[str]) -> dict[str, Job]:
    """The jobs of these numbers of which slurmctld knows. Raises SlurmError where it does not answer."""
    found: dict[str, Job] = {}
    for some in portions(whole(numbers), ASKED_AT_ONCE):
        try:
            text = ask("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", f"--jobs={','.join(some)}")
        except SlurmError as error:
            if "Invalid job id" not in str(error):  # said of a single job that is forgotten
                raise
            continue
        for line in text.splitlines():
            number, state, reason = line.split("|", 2)
            found[number] = Job(state, "" if reason == "None" else reason)
    return {number: job for number, job in found.items() if number in set(numbers)}


def in_accounts(numbers: Sequence[str]) -> dict[str, Job]:
    """The jobs of these numbers that the accounting has; none where there is no accounting."""
    found: dict[str, Job] = {}
    if shutil.which("sacct") is None:
        return found
    for some in portions(numbers, ASKED_AT_ONCE):
        try:
            text = ask(
                "sacct",
                "--noheader",
                "--parsable2",
                "--allocations",
                "--duplicates",
                "--format=JobID,State",
                f"--jobs={','.join(some)}",
            )
        except SlurmError:
            return found
        for line in text.splitlines():  # a requeued job has a line for each time, the last of which counts
            number, _, state = line.partition("|")
            found[number] = Job(state.split()[0])  # "CANCELLED by 1000"
    return found


def state_of(number: str) -> Job | None:
    """A job's state now; None where SLURM does not know it or does not answer."""
    return (jobs([number]) or {}).get(number)


def requeue(number: str) -> None:
    """Has a running job start anew from the queue. Raises SlurmError where it does not.

    SLURM may have done so by itself, on a preemption say; then a second one is an error that is none.
    """
    try:
        ask("scontrol", "requeue", number)
    except SlurmError:
        job = state_of(number)
        if job is None or not job.waiting:
            raise


def seconds_left(number: str) -> float | None:
    """Seconds until a running job's time limit; None where it has none, or SLURM does not say."""
    try:
        return seconds(ask("squeue", "--noheader", "--states=all", "--format=%L", f"--jobs={number}"))
    except (SlurmError, ValueError):
        return None


TIME = re.compile(
    r"(?:(?P<d>\d+)-(?P<dh>\d+)(?::(?P<dm>\d+)(?::(?P<ds>\d+))?)?|(?:(?:(?P<h>\d+):)?(?P<m>\d+):(?P<s>\d+))|(?P<minutes>\d+))"
)


def seconds(text: str) -> float:
    """Seconds of a span of time in sbatch's notation: minutes, minutes:seconds, [days-]hours:minutes:seconds, days-hours[:minutes].

    Raises ValueError for what is none.
    """
    match = TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r}: not a span of time")
    part = {name: int(value or 0) for name, value in match.groupdict().items()}
    hours = 24 * part["d"] + part["dh"] + part["h"]
    return 3600.0 * hours + 60 * (part["dm"] + part["m"] + part["minutes"]) + part["ds"] + part["s"]


MEMORY = r"(\d+)([KMGT]?)"  # a number, in MiB or with a unit
MEBIBYTES = {"": 1.0, "K": 2.0**-10, "M": 1.0, "G": 2.0**10, "T": 2.0**20}


def mebibytes(text: str) -> int:
    """An amount of memory in sbatch's notation: a number, in MiB or with K, M, G or T. Raises ValueError for anything else."""
    match = re.fullmatch(MEMORY + "B?", text.upper())
    if match is None:
        raise ValueError(f"{text!r}: not an amount of memory")
    return int(int(match[1]) * MEBIBYTES[match[2]])


def largest_array() -> int:
    """How many jobs one array may have (MaxArraySize). Raises SlurmError."""
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"))
    return int(match[1]) if match else 1001


def partitions() -> list[str]:
    """The cluster's partitions; empty where SLURM does not say."""
    try:
        return ask("sinfo", "--noheader", "--format=%R").split()
    except SlurmError:
        return []


def nodes(partition: str | None) -> list[str]:
    """What the nodes of a partition (None: of all) have: one description for each kind of node."""
    asked = [f"--partition={partition}"] if partition else []
    try:
        text = ask("sinfo", "--noheader", *asked, "--format=%c CPUs, %m MB, gres %G, features %f")
    except SlurmError:
        return []
    return list(dict.fromkeys(text.splitlines()))
