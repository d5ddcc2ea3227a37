"""Where a run computes, on this machine or on a SLURM cluster."""

from dataclasses import dataclass
from enum import StrEnum

from sae_transcoder.config.fields.metadata import no_result


class Hardware(StrEnum):
    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"
    slurm = "slurm"


@dataclass
class HardwareConfig:
    """Where a run computes (group `hardware`)."""

    hardware: Hardware = no_result(Hardware.auto)
    """auto, cpu, gpu or slurm; set by choosing the group. slurm submits to the cluster, whatever machine the command runs on."""
    device: str | None = no_result(None)
    """torch device, such as cpu or cuda:1. null: cuda where there is one, else cpu."""
    threads: int | None = no_result(None, at_least=1, at_most=1024)
    """CPU threads. null: torch's own choice. Results are bit-identical only at an equal count."""
    forward_batch_size: int | None = no_result(None, at_least=1)
    """Sequences per forward of the language model, where a batch of `batch_size` at once needs too much memory; `loss_fn=fvu` only.
    null: all of a batch. Other numbers change the rounding."""
    compile_model: bool | None = no_result(None)
    """Compile the language model's layers (torch.compile) except those inside which a hookpoint lies. Takes seconds to minutes at the
    start, and changes the rounding. true: a run that cannot be compiled is refused. null: compiled on a GPU, where torch.compile can, the
    weights are not quantized and deterministic is not set; if it fails, the run goes on without."""
    deterministic: bool = no_result(False)
    """Deterministic algorithms only, for runs that are bit-identical on the same GPU; slower. CPU runs are bit-identical without it."""
    distribute_modules: bool = False
    """Where several ranks train one run (torchrun). true: each trains its share of the hookpoints on every batch, as one process would.
    false: each trains all coders on `batch_size` sequences of its own (data parallel), as one process with ranks x batch_size would."""


@dataclass
class SlurmConfig(HardwareConfig):
    """What a job asks of SLURM, with hardware=slurm (group `hardware`); each pack is a job. Names and meanings are sbatch's where it has one."""

    partition: str | None = no_result(None)
    """Partition. null: the cluster's default."""
    account: str | None = no_result(None)
    """Account that is charged."""
    qos: str | None = no_result(None)
    """Quality of service."""
    constraint: str | None = no_result(None)
    """Features that the node must have, such as `a100|h100`."""
    gres: str | None = no_result(None)
    """Generic resources on each node, such as gpu:1 or gpu:a100:8. null: none, for a job on CPUs."""
    nodes: int = no_result(1, at_least=1)
    """Nodes per job."""
    tasks_per_node: int = no_result(1, at_least=1)
    """Processes on each node that train a pack together, with a GPU each: data parallel, or with distribute_modules by hookpoints."""
    cpus: int | None = no_result(None, at_least=1)
    """CPU cores per task. null: the cluster's default."""
    memory: str | None = no_result(None)
    """Memory on each node, such as 32G. null: the partition's default."""
    gpu_memory_gib: float | None = no_result(None, at_least=0.0)
    """Memory of one GPU of the cluster in GiB: runs that need more are refused, packs are made to fit. null: not known; a pack that
    turns out too large is split when it runs."""
    time: str = no_result("24:00:00")
    """Time limit of a job: minutes, or [days-]hours:minutes:seconds. A job that reaches it saves and goes back to the queue."""
    signal_delay: int = no_result(120, at_least=1)
    """Seconds before the time limit at which runs save and end."""
    max_timeouts: int | None = no_result(None, at_least=0)
    """Times that a job may reach its time limit and go back to the queue. null: as often as it makes progress."""
    array_parallelism: int | None = no_result(None, at_least=1)
    """Jobs of a sweep that run at the same time. null: as many as the cluster starts."""
    setup: list[str] = no_result([])
    """Shell lines at the start of the job, such as `module load cuda`; a failing one ends the job."""
    sbatch: list[str] = no_result([])
    """Further options of sbatch, each as --name=value or --name."""
    snapshot: bool = no_result(True)
    """Jobs run a copy of this program as it is when they are submitted. false: the program itself; a job refuses to start once it has changed."""
    wait: bool = no_result(False)
    """Stay until the jobs have ended, with the table of runs. false: submit and return; searches, which need results, must wait."""
