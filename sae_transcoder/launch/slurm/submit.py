"""Submits packs of runs to a SLURM cluster as one array; before that, asks whether the cluster would accept such a job."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from io import StringIO
from pathlib import Path

import submitit
from filelock import Timeout
from submitit.core.utils import FailedJobError, FailedSubmissionError

from sae_transcoder import distributed, slurm_client
from sae_transcoder.config import Config, ConfigError, run_dir, signature
from sae_transcoder.launch.slurm.job import PackTask
from sae_transcoder.launch.slurm.script import CODE, jobs_folder, make_executor, sbatch_options
from sae_transcoder.process import code_version
from sae_transcoder.run_store import job_record, status
from sae_transcoder.run_store.job_record import JobRecord
from sae_transcoder.run_store.status import State, Status
from sae_transcoder.slurm_client import SlurmError

# {words in an error message of sbatch: the fields that may have caused it}
FIELDS_BY_MESSAGE = {
    "partition": ("partition",),
    "account": ("account", "partition"),
    "qos": ("qos",),
    "feature": ("constraint",),
    "time limit": ("time", "partition"),
    "node configuration": ("gres", "nodes", "tasks_per_node", "cpus", "memory", "constraint"),
    "generic resource": ("gres",),
    "gres": ("gres",),
    "memory": ("memory",),
    "node count": ("nodes",),
    "more processors": ("cpus", "tasks_per_node"),
    "cpu count": ("cpus", "tasks_per_node"),
    "option": ("sbatch",),
}


def check_job(cfg: Config, *, search: bool = False) -> None:
    """Raises ConfigError if the cluster would refuse a job with these settings. Submits nothing. search: a sweeper waits for the results."""
    if search and not cfg.wait:
        raise ConfigError("wait=false with a sweeper that searches: its next proposals depend on results; set wait=true")
    if distributed.world_size() > 1:
        raise ConfigError(
            f"hardware=slurm on {distributed.world_size()} ranks (torchrun): one process submits; start the command without torchrun, "
            "and set tasks_per_node"
        )
    if (cfg.dry_run or cfg.prepare) and cluster_obstacle():  # these submit nothing
        return
    if not has_sbatch():
        raise ConfigError(
            "hardware=slurm: there is no sbatch on this machine; run the command on a login node of the cluster, or use hardware=auto; "
            "dry_run=true shows here what would be submitted"
        )
    flags = [f"--{name}" if value is True else f"--{name}={value}" for name, value in sbatch_options(cfg).items()]
    with outside_of_jobs(), tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "job.sh"
        script.write_text("#!/bin/bash\n")
        try:
            slurm_client.ask("sbatch", "--test-only", *flags, str(script))
        except SlurmError as error:
            raise ConfigError(explain_refusal(cfg, str(error))) from error


def has_sbatch() -> bool:
    """Whether jobs can be submitted from this machine."""
    return shutil.which("sbatch") is not None and shutil.which("srun") is not None


def cluster_obstacle() -> str | None:
    """Why no cluster can be asked from this machine; None where one answers."""
    if not has_sbatch():
        return "no sbatch on this machine"
    try:
        slurm_client.ask("sinfo", "--noheader")
    except SlurmError:
        return "SLURM does not answer on this machine"
    return None


@contextmanager
def outside_of_jobs() -> Iterator[None]:
    """Hides the variables of the job that this command itself runs in, an interactive one for instance, so that new jobs do not inherit them."""
    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    kept = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    with submitit.helpers.clean_env():
        os.environ.update(kept)
        yield


def explain_refusal(cfg: Config, message: str) -> str:
    """An error message of sbatch with the fields that may have caused it, and what the cluster has instead."""
    message = " ".join(
        line.removeprefix("sbatch: ").removeprefix("error: ").removeprefix("allocation failure: ") for line in message.splitlines()
    )
    if any(words in message for words in ("no answer", "controller", "configuration source")):
        return (
            f"hardware=slurm: SLURM does not answer ({message}); run the command on a login node of the cluster, or try again later"
        )
    matches = (names for words, names in FIELDS_BY_MESSAGE.items() if words in message.lower())
    names = next(matches, ("partition", "account", "qos", "gres"))
    values = ", ".join(f"{name}={getattr(cfg, name)}" for name in names if getattr(cfg, name) not in (None, []))
    if names[0] == "partition" and (partitions := slurm_client.partitions()):
        fix = f"choose one of {', '.join(partitions)}"
    elif names[0] in ("gres", "constraint", "memory", "nodes", "cpus") and (kinds := slurm_client.node_kinds(cfg.partition)):
        fix = f"the nodes have {'; or '.join(kinds)}"
    else:
        fix = "ask `sinfo` and `sacctmgr show assoc user=$USER` what you may use"
    return f"{values or 'hardware=slurm'}: SLURM refuses ({message}); {fix}"


def submit_packs(packs: Sequence[Sequence[Config]]) -> list[str]:
    """Submits a job for each pack and returns the jobs' numbers. Raises ConfigError if SLURM refuses.

    All jobs form one array, or several where the cluster limits the size of arrays.
    """
    from sae_transcoder.language_model import loading

    cfg = packs[0][0]
    folder = jobs_folder(cfg)
    folder.mkdir(parents=True, exist_ok=True)
    if cfg.snapshot:
        code_version.snapshot(folder / CODE)
    # Now, because all jobs would otherwise download the weights at once. (The text is tokenised by now.)
    loading.fetch_all(cfg for pack in packs for cfg in pack)
    numbers: list[str] = []
    try:
        array_size = slurm_client.max_array_size()
        num_arrays = -(-len(packs) // array_size)
        for array in slurm_client.chunks(packs, array_size):
            with outside_of_jobs(), redirect_stderr(StringIO()):  # submitit prints what it raises
                executor = make_executor(packs, num_arrays)
                with executor.batch():
                    jobs = [executor.submit(PackTask(list(pack), code_version.current().digest)) for pack in array]
            for pack, job in zip(array, jobs, strict=True):
                record_job(folder, job.job_id, pack)
            numbers += [job.job_id for job in jobs]
    except (SlurmError, FailedJobError, FailedSubmissionError) as error:
        already = f"; submitted before that: {', '.join(numbers)}" if numbers else ""
        raise ConfigError(explain_refusal(cfg, str(error)) + already) from error
    return numbers


def record_job(folder: Path, number: str, pack: Sequence[Config]) -> None:
    """Writes a job's record, and in each run's directory the number of its job and a link to the job's log."""
    cfg = pack[0]
    runs = [str(run_dir(cfg).absolute()) for cfg in pack]
    job_record.write(
        folder, number, JobRecord(runs, cfg.time, cfg.memory, cfg.signal_delay, cfg.max_timeouts, str(code_version.current()))
    )
    for cfg in pack:
        directory = run_dir(cfg)
        link = directory / job_record.LINK
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(job_record.log_path(folder, number), directory.absolute()))
        with suppress(Timeout), status.lock(directory):  # else the job has begun
            reported = status.read(directory) or Status(State.queued, signature(cfg))
            if reported.slurm_job != number:
                reported.state, reported.why, reported.slurm_job = State.queued, None, number
                status.write(directory, reported)
