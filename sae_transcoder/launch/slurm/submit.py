"""From packs of runs to jobs on a SLURM cluster: what is asked for, what is refused before, and one array for all packs."""

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import submitit
from filelock import Timeout
from submitit.core.utils import FailedJobError, FailedSubmissionError

from sae_transcoder import distributed, slurm_client
from sae_transcoder.config import Config, ConfigError, run_dir, signature, sweep_dir
from sae_transcoder.launch.slurm.job import Pack
from sae_transcoder.process import code_version
from sae_transcoder.run_store import job_record, status
from sae_transcoder.run_store.job_record import Record
from sae_transcoder.run_store.status import State, Status
from sae_transcoder.slurm_client import SlurmError

# What of sbatch's complaints concerns which fields.
COMPLAINTS = {
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


def options(cfg: Config) -> dict[str, Any]:
    """Options of sbatch {name: value, true for one that has none}."""
    given = {
        "partition": cfg.partition, "account": cfg.account, "qos": cfg.qos, "constraint": cfg.constraint, "gres": cfg.gres,
        "nodes": cfg.nodes, "ntasks-per-node": cfg.tasks_per_node, "cpus-per-task": cfg.cpus, "mem": cfg.memory, "time": cfg.time,
        "requeue": True,
    }  # fmt: skip
    further = {name: value or True for name, _, value in (option.removeprefix("--").partition("=") for option in cfg.sbatch)}
    return {name: value for name, value in given.items() if value is not None} | further


def check(cfg: Config, *, searches: bool = False) -> None:
    """Raises ConfigError where the cluster would not take a job of these settings; submits nothing. searches: for a sweeper that needs
    the results."""
    if searches and not cfg.wait:
        raise ConfigError("wait=false with a sweeper that searches: its next proposals depend on results; set wait=true")
    if distributed.world_size() > 1:
        raise ConfigError(
            f"hardware=slurm on {distributed.world_size()} ranks (torchrun): one process submits; start the command without torchrun, "
            "and set tasks_per_node"
        )
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise ConfigError(
            "hardware=slurm: there is no sbatch on this machine; run the command on a login node of the cluster, or use hardware=auto"
        )
    flags = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options(cfg).items()]
    with outside_of_jobs(), tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "job.sh"
        script.write_text("#!/bin/bash\n")
        try:
            slurm_client.ask("sbatch", "--test-only", *flags, str(script))
        except SlurmError as error:
            raise ConfigError(explain(cfg, str(error))) from error


@contextmanager
def outside_of_jobs() -> Iterator[None]:
    """While it is open, a command that is itself part of a job (of an interactive one, say) hands nothing of that on to new ones."""
    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    where = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    with submitit.helpers.clean_env():
        os.environ.update(where)
        yield


def explain(cfg: Config, said: str) -> str:
    """sbatch's complaint with the fields that it concerns, and what the cluster has instead."""
    said = " ".join(
        line.removeprefix("sbatch: ").removeprefix("error: ").removeprefix("allocation failure: ") for line in said.splitlines()
    )
    if any(part in said for part in ("no answer", "controller", "configuration source")):
        return f"hardware=slurm: SLURM does not answer ({said}); run the command on a login node of the cluster, or try again later"
    names = next((names for part, names in COMPLAINTS.items() if part in said.lower()), ("partition", "account", "qos", "gres"))
    values = ", ".join(f"{name}={getattr(cfg, name)}" for name in names if getattr(cfg, name) not in (None, []))
    if names[0] == "partition" and (there := slurm_client.partitions()):
        fix = f"choose one of {', '.join(there)}"
    elif names[0] in ("gres", "constraint", "memory", "nodes", "cpus") and (kinds := slurm_client.nodes(cfg.partition)):
        fix = f"the nodes have {'; or '.join(kinds)}"
    else:
        fix = "ask `sinfo` and `sacctmgr show assoc user=$USER` what you may use"
    return f"{values or 'hardware=slurm'}: SLURM refuses ({said}); {fix}"


def submit(packs: Sequence[Sequence[Config]]) -> list[str]:
    """Submits a job for each pack, all as one array, or as several where the cluster's arrays are smaller; returns the jobs' numbers.

    Raises ConfigError where SLURM refuses.
    """
    cfg = packs[0][0]
    folder = (sweep_dir(cfg) / job_record.FOLDER).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    code = code_version.snapshot(folder / "code") if cfg.snapshot else code_version.PACKAGE.parent
    fetch(packs)
    numbers: list[str] = []
    try:
        most = slurm_client.largest_array()
        arrays = -(-len(packs) // most)
        for part in slurm_client.portions(packs, most):
            with outside_of_jobs(), redirect_stderr(StringIO()):  # submitit prints what it raises
                executor = prepared(cfg, folder, code, arrays)
                with executor.batch():
                    jobs = [executor.submit(Pack(list(pack), code_version.current().digest)) for pack in part]
            for pack, job in zip(part, jobs, strict=True):
                note(folder, job.job_id, pack)
            numbers += [job.job_id for job in jobs]
    except (SlurmError, FailedJobError, FailedSubmissionError) as error:
        already = f"; submitted before that: {', '.join(numbers)}" if numbers else ""
        raise ConfigError(explain(cfg, str(error)) + already) from error
    return numbers


def prepared(cfg: Config, folder: Path, code: Path, arrays: int) -> submitit.AutoExecutor:
    """submitit's executor for jobs of these settings. folder: for its files and the logs; code: what is imported; arrays: how many
    share `array_parallelism`."""
    python = shlex.quote(sys.executable)
    path = os.pathsep.join(filter(None, [str(code), os.environ.get("PYTHONPATH")]))
    setup = [
        "set -e", *cfg.setup, "set +e",
        # Else the working directory would come before what was copied; and sites that set SBATCH_EXPORT=NONE would hide all of this.
        f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(path)} SLURM_EXPORT_ENV=ALL",
    ]  # fmt: skip
    teardown = ["code=$?", f"{python} -m sae_transcoder.launch.slurm.after {shlex.quote(str(folder))} $code", "exit $?"]
    executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=10**6)  # slurm_after counts
    executor.update_parameters(
        name=cfg.sweep_name or "sae-train",
        timeout_min=max(1, int(slurm_client.seconds(cfg.time) // 60)),
        nodes=cfg.nodes,
        tasks_per_node=cfg.tasks_per_node,
        stderr_to_stdout=True,
        slurm_setup=setup,
        slurm_teardown=teardown,
        slurm_signal_delay_s=cfg.signal_delay,
        slurm_array_parallelism=max(1, cfg.array_parallelism // arrays) if cfg.array_parallelism else 10**6,
        # srun does not take over sbatch's --cpus-per-task; where one rank dies the others cannot go on.
        slurm_srun_args=["--kill-on-bad-exit=1", *([f"--cpus-per-task={cfg.cpus}"] if cfg.cpus else [])],
        slurm_additional_parameters=options(cfg),
    )
    return executor


def fetch(packs: Sequence[Sequence[Config]]) -> None:
    """Downloads what the jobs would otherwise download all at once: the models' weights. (Their text is tokenised by now.)"""
    from sae_transcoder.language_model import loading

    for cfg in {(cfg.model_name, cfg.revision): cfg for pack in packs for cfg in pack}.values():
        loading.fetch(cfg)


def note(folder: Path, number: str, pack: Sequence[Config]) -> None:
    """Keeps the record of a job, and says in each run's directory which job it waits for, with a link to what that prints."""
    cfg = pack[0]
    runs = [str(run_dir(cfg).absolute()) for cfg in pack]
    job_record.write(
        folder, number, Record(runs, cfg.time, cfg.memory, cfg.signal_delay, cfg.max_timeouts, str(code_version.current()))
    )
    for cfg in pack:
        directory = run_dir(cfg)
        link = directory / job_record.LINK
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(job_record.log(folder, number), directory.absolute()))
        with suppress(Timeout), status.lock(directory):  # else the job has begun
            found = status.read(directory) or Status(State.queued, signature(cfg))
            if found.slurm_job != number:
                found.state, found.why, found.slurm_job = State.queued, None, number
                status.write(directory, found)
