"""The script of a job: what it asks of SLURM, which environment it finds, what it runs."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import submitit
from submitit.slurm.slurm import SlurmExecutor

from sae_transcoder import slurm_client
from sae_transcoder.config import PATH_FIELDS, Config, sweep_dir
from sae_transcoder.config.paths import exported
from sae_transcoder.process import code_version
from sae_transcoder.run_store import job_record

CODE = "code"  # the folder of the copies of this package
# Where Hugging Face's libraries and this one keep what they have, and whether they ask the network for more. No HF_TOKEN: others may read the script.
ENVIRONMENT = (
    "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_TOKEN_PATH", "XDG_CACHE_HOME", "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE",
)  # fmt: skip


def script_text(packs: Sequence[Sequence[Config]]) -> str:
    """The script that `submit_packs` would submit, where all packs fit into one array. Needs no cluster and writes nothing."""
    with patch.object(SlurmExecutor, "affinity", return_value=1):  # submitit asks for srun
        executor: Any = make_executor(packs)._executor
    if len(packs) > 1:
        executor.parameters["map_count"] = len(packs)
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def sbatch_options(cfg: Config) -> dict[str, Any]:
    """Options of sbatch: {name: value, or true for an option without one}."""
    options = {
        "partition": cfg.partition, "account": cfg.account, "qos": cfg.qos, "constraint": cfg.constraint, "gres": cfg.gres,
        "nodes": cfg.nodes, "ntasks-per-node": cfg.tasks_per_node, "cpus-per-task": cfg.cpus, "mem": cfg.memory, "time": cfg.time,
        "requeue": True,
    }  # fmt: skip
    others = {name: value or True for name, _, value in (option.removeprefix("--").partition("=") for option in cfg.sbatch)}
    return {name: value for name, value in options.items() if value is not None} | others


def path_lines(packs: Sequence[Sequence[Config]]) -> list[str]:
    """Shell lines by which the paths in the settings lead to the same places in the job as here, whatever its node and SBATCH_EXPORT set."""
    values = (getattr(cfg, name) for pack in packs for cfg in pack for name in PATH_FIELDS)
    return exported(value for value in values if value is not None)


def environment_lines() -> list[str]:
    """Shell lines by which a job finds what is downloaded where this process does, and asks the hub as little as it does."""
    return [f"export {name}={shlex.quote(os.environ[name])}" for name in ENVIRONMENT if name in os.environ]


def jobs_folder(cfg: Config) -> Path:
    """Where submitit's files, the jobs' records and their logs lie."""
    return (sweep_dir(cfg) / job_record.FOLDER).absolute()


def make_executor(packs: Sequence[Sequence[Config]], num_arrays: int = 1) -> submitit.AutoExecutor:
    """submitit's executor for the jobs of these packs. num_arrays: arrays that share `array_parallelism`."""
    cfg = packs[0][0]
    folder = jobs_folder(cfg)
    code = folder / CODE / code_version.current().digest if cfg.snapshot else code_version.PACKAGE.parent
    python = shlex.quote(sys.executable)
    path = os.pathsep.join(filter(None, [str(code), os.environ.get("PYTHONPATH")]))
    setup = [
        *environment_lines(), *path_lines(packs), "set -e", *cfg.setup, "set +e",
        # Else the working directory would precede the copied code in sys.path, and SBATCH_EXPORT=NONE, which some sites set, would hide this.
        f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(path)} SLURM_EXPORT_ENV=ALL",
    ]  # fmt: skip
    teardown = ["code=$?", f"{python} -m sae_transcoder.launch.slurm.job_end {shlex.quote(str(folder))} $code", "exit $?"]
    executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=10**6)  # after.py counts them
    executor.update_parameters(
        name=cfg.sweep_name or "sae-train",
        timeout_min=max(1, int(slurm_client.seconds(cfg.time) // 60)),
        nodes=cfg.nodes,
        tasks_per_node=cfg.tasks_per_node,
        stderr_to_stdout=True,
        slurm_setup=setup,
        slurm_teardown=teardown,
        slurm_signal_delay_s=cfg.signal_delay,
        slurm_array_parallelism=max(1, cfg.array_parallelism // num_arrays) if cfg.array_parallelism else 10**6,
        # srun ignores sbatch's --cpus-per-task. When one rank dies, the others cannot continue.
        slurm_srun_args=["--kill-on-bad-exit=1", *([f"--cpus-per-task={cfg.cpus}"] if cfg.cpus else [])],
        slurm_additional_parameters=sbatch_options(cfg),
    )
    return executor
