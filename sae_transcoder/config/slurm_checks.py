"""Faults in what is asked of SLURM: fields that contradict each other, and SLURM's fields where no job is submitted."""

import re
from dataclasses import fields

from sae_transcoder import slurm_client
from sae_transcoder.config import DEFAULTS, Config, Hardware, HardwareConfig, SlurmConfig

SLURM_FIELDS = [f.name for f in fields(SlurmConfig) if f.name not in {f.name for f in fields(HardwareConfig)}]

# Options of sbatch that `sbatch` must not hold: the field that sets each, or None where submitit needs the option itself.
RESERVED_OPTIONS = {
    "partition": "partition", "account": "account", "qos": "qos", "constraint": "constraint", "gres": "gres", "nodes": "nodes",
    "ntasks-per-node": "tasks_per_node", "cpus-per-task": "cpus", "mem": "memory", "time": "time", "array": "array_parallelism",
    "signal": "signal_delay", "output": None, "error": None, "open-mode": None, "requeue": None, "no-requeue": None, "ntasks": "tasks_per_node",
    "wrap": None, "test-only": None, "parsable": None, "job-name": "sweep_name",
}  # fmt: skip


def slurm_faults(cfg: Config) -> list[str]:
    """Faults of SLURM's fields."""
    if cfg.hardware != Hardware.slurm:
        return [
            f"{name}={getattr(cfg, name)} with hardware={cfg.hardware}: read by hardware=slurm only; leave it out, or set hardware=slurm"
            for name in SLURM_FIELDS
            if getattr(cfg, name) != DEFAULTS[name]
        ]
    faults = []
    try:
        if slurm_client.seconds(cfg.time) <= cfg.signal_delay:
            faults.append(
                f"signal_delay={cfg.signal_delay} with time={cfg.time}: the job would stop at once; raise time or lower signal_delay"
            )
    except ValueError:
        faults.append(f"time={cfg.time}: write minutes, as 90, or [days-]hours:minutes:seconds, as 4:00:00 or 1-12:00:00")
    try:
        if cfg.memory is not None:
            slurm_client.mebibytes(cfg.memory)
    except ValueError:
        faults.append(f"memory={cfg.memory}: write a whole number of MiB, or one with K, M, G or T, as 32G")
    if cfg.workers is not None:
        faults.append(
            f"workers={cfg.workers} with hardware=slurm: each pack is a job; leave it out, and set runs_per_pack or array_parallelism"
        )
    return faults + option_faults(cfg) + gpu_faults(cfg)


def option_faults(cfg: Config) -> list[str]:
    """Options in `sbatch` that are malformed or reserved."""
    faults = []
    for option in cfg.sbatch:
        match = re.fullmatch(r"--([a-z-]+)(=.*)?", option)
        if match is None:
            faults.append(f"sbatch={option}: write each option as --name=value or --name")
        elif match[1] in RESERVED_OPTIONS:
            field = RESERVED_OPTIONS[match[1]]
            fix = f"set {field} instead" if field else "it is needed for requeueing and for the logs; leave it out"
            faults.append(f"sbatch={option}: {fix}")
    return faults


def gpu_faults(cfg: Config) -> list[str]:
    """A job on GPUs that asks for none, or for fewer than it has tasks."""
    if cfg.device is not None and not cfg.device.startswith("cuda"):
        return []
    gpus = re.search(r"gpu(?::[^:,]+)*?(?::(\d+))?(?:\(|,|$)", cfg.gres or "")
    num_gpus = int(gpus[1] or 1) if gpus else 0
    if not num_gpus and not any("gpus" in option for option in cfg.sbatch):
        return [f"gres={cfg.gres or 'null'} with device={cfg.device}: the job would have no GPU; set gres=gpu:1, or device=cpu"]
    if num_gpus and num_gpus < cfg.tasks_per_node:
        return [
            f"gres={cfg.gres} with tasks_per_node={cfg.tasks_per_node}: fewer GPUs than tasks; "
            f"set gres=gpu:{cfg.tasks_per_node}, or lower tasks_per_node"
        ]
    return []
