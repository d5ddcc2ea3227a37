"""Everything that can be known to be wrong before weights are loaded, and what the run will be.

torch and transformers are imported only once the settings are right by themselves.
"""

from __future__ import annotations

import logging
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_transcoder import config, distributed, slurm_client
from sae_transcoder.coder.names import coder_names
from sae_transcoder.config import (
    Activation,
    Config,
    ConfigError,
    DatasetConfig,
    Hardware,
    Resume,
    Tracker,
    checks,
)
from sae_transcoder.preflight import device_memory, memory
from sae_transcoder.preflight.header_warnings import warnings
from sae_transcoder.preflight.peak import Part, peak
from sae_transcoder.run_store import job_record, status

if TYPE_CHECKING:
    import torch

    from sae_transcoder.data.run_length import RunLength
    from sae_transcoder.data.token_sets import TokenSets
    from sae_transcoder.language_model.compilation import CompileObstacle

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What a run will be, once nothing is found wrong with it."""

    cfg: Config
    device: torch.device
    widths: dict[str, int]  # {hookpoint: d}
    tokens: TokenSets
    length: RunLength
    model_parameters: int
    model_layers: int | None  # of the language model's first layers, so many are loaded; None: all
    memory: list[Part]  # what it holds on its device
    available: int | None  # bytes of the device; None where it is a cluster's, and not known
    warnings: list[str]
    start_from: dict[str, Path]  # {coder: folder of the weights to start from}
    uncompiled: CompileObstacle | None  # why the language model's layers are not compiled; None: they are
    ranks: int = 1  # processes that train it together

    @property
    def latents(self) -> dict[str, int]:
        """{hookpoint: number of latents}."""
        return {point: memory.latents(self.cfg, width) for point, width in self.widths.items()}

    @property
    def coder_parameters(self) -> int:
        """Parameters of all coders."""
        return sum(memory.coder_parameters(self.cfg, d) for d in self.widths.values()) * len(self.cfg.init_seeds)


Known = dict[Any, Any]
"""What runs of one sweep or pack need not find out each for itself: the model's outline, widths, tokens."""


def plan(cfg: Config, known: Known | None = None, *, on_slurm: bool = False, processes: int | None = None) -> Plan:
    """Checks the settings, then the machine, the model's outline and the data, and says what the run will be.

    known: what was found out for other runs, added to. on_slurm: it will run in a job, whose device is not here. processes: the ranks that
    will train it together; None: as the job's settings, or here the environment, say. Raises ConfigError with all faults of the first of
    these that has any.
    """
    known = {} if known is None else known
    processes = processes or (cfg.nodes * cfg.tasks_per_node if on_slurm else distributed.world_size())
    sharing = 1 if cfg.distribute_modules else processes  # ranks that share each batch

    def once(make: Callable[[], Any], *key: Any) -> Any:
        if key not in known:
            known[key] = make()
        return known[key]

    check_settings(cfg)
    if cfg.tracker != Tracker.none:
        from sae_transcoder.trackers import logbook

        if faults := logbook.check(cfg):
            raise ConfigError(*faults)

    from sae_transcoder.coder import finetune
    from sae_transcoder.data import token_sets
    from sae_transcoder.data.run_length import needed_samples, run_length
    from sae_transcoder.language_model import hookpoints, layers, loading, model_checks
    from sae_transcoder.language_model.sizes import sizes_of

    device = torch_device(cfg) if on_slurm else find_device(cfg)
    model = (cfg.model_name, cfg.revision)
    outline = once(lambda: loading.outline(cfg), "outline", model)
    points = hookpoints.hookpoint_names(cfg, outline)
    widths = once(lambda: hookpoints.widths(cfg, outline, points), "widths", model, cfg.model_type, tuple(points))
    needs = once(
        lambda: layers.num_layers_needed(cfg, outline, points), "layers", model, cfg.loss_fn, cfg.eval_end_to_end, tuple(points)
    )
    uncompiled = layers.compile_obstacle(cfg, outline, points, needs, device, here=not on_slurm)
    faults = model_checks.faults(cfg, outline, uncompiled) + width_faults(cfg, widths) + share_faults(cfg, widths, processes)
    bound = needed_samples(cfg, sharing)
    if bound is not None:
        faults += length_faults(cfg, run_length(cfg, bound, sharing), bound)
    if faults:
        raise ConfigError(*faults)
    sizes = {point: memory.latents(cfg, width) for point, width in widths.items()}
    start_from = finetune.start_coders(
        cfg, [name for point in widths for name in coder_names(point, cfg.init_seeds)], widths, sizes
    )
    dtype = loading.resolve_dtype(cfg, device)
    loaded = outline if needs is None else once(lambda: loading.outline(cfg, needs), "outline", model, needs)
    parameters = sum(p.numel() for p in loaded.parameters())
    model_sizes = sizes_of(cfg, loaded, dtype)
    needed = memory.memory_estimate(cfg, widths, model_sizes, device.type, processes)
    available = device_memory.on_cluster(cfg, device) if on_slurm else device_memory.here(device)
    if faults := device_memory.faults(cfg, peak([needed]), available, device):
        raise ConfigError(*faults)
    source = str({f.name: getattr(cfg, f.name) for f in fields(DatasetConfig) if f.name != "max_samples"})
    tokens = once(
        lambda: token_sets.prepare(cfg, lambda: loading.tokenizer(cfg), model_sizes.vocabulary, sharing),
        *("tokens", model, source, bound),
    )
    planned = run_length(cfg, len(tokens.train), sharing)
    if faults := length_faults(cfg, planned, len(tokens.train)):
        raise ConfigError(*faults)
    notes = warnings(cfg, planned, device.type, model_sizes.width)
    return Plan(
        cfg, device, widths, tokens, planned, parameters, needs, needed, available, notes, start_from, uncompiled, processes
    )


def check_settings(cfg: Config) -> None:
    """Raises ConfigError for settings that are wrong by themselves, or whose directory holds something else."""
    if faults := checks.faults(cfg):
        raise ConfigError(*faults)
    for name in ("save_dir", "cache_dir"):
        if getattr(cfg, name) is not None:
            refuse_unwritable(name, Path(getattr(cfg, name)))
    refuse_directory(cfg)


def refuse_unwritable(name: str, folder: Path) -> None:
    """Raises ConfigError where `folder` cannot be made or written to; leaves nothing there."""
    nearest = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryDirectory(dir=nearest):
            pass
    except OSError as error:
        raise ConfigError(f"{name}={folder}: cannot be written to ({error.strerror}: {nearest}); choose another folder") from error


def refuse_directory(cfg: Config) -> None:
    """Raises ConfigError where the run's directory holds anything but this very run."""
    directory = config.run_dir(cfg)
    fix = "choose another run_name or save_dir"
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"run_name={config.run_name(cfg)}: {directory} is a file; {fix}")
    try:
        found = status.read(directory)
    except ValueError as error:
        raise ConfigError(f"{error}; {fix}") from error
    if found is None:
        # What is there before a run can write its status.
        early = {".hydra", "train.log", ".lock", ".status.json.new", job_record.LINK}
        if directory.is_dir() and {p.name for p in directory.iterdir()} - early:
            raise ConfigError(f"run_name={config.run_name(cfg)}: {directory} holds files but no run; {fix}")
    elif cfg.resume == Resume.never and found.state != status.State.queued:
        raise ConfigError(f"resume=never: {directory} holds a run ({found.state}); {fix}, or set resume=auto")
    elif found.signature != config.signature(cfg):
        raise ConfigError(
            f"run_name={config.run_name(cfg)}: {directory} holds a run of other settings "
            f"(signature {found.signature}, this one's is {config.signature(cfg)}); {fix}"
        )
    done = found is not None and found.state == status.State.done
    if cfg.resume == Resume.must and not done and not status.state_path(directory).exists():
        raise ConfigError(f"resume=must: {directory} holds no training state; check save_dir and run_name, or set resume=auto")


def torch_device(cfg: Config) -> torch.device:
    """The device as set, else cuda where there is one, else the CPU. Raises ConfigError for one that torch or sparsify do not know."""
    import torch

    name = ("cuda" if torch.cuda.is_available() else "cpu") if cfg.device is None else cfg.device
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{asked(cfg, name)}: torch knows no such device; use cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{asked(cfg, name)}: sparsify runs on cpu and cuda only; choose one of these")
    return device


def asked(cfg: Config, device: str) -> str:
    """The settings that choose the device, for messages."""
    return f"hardware={cfg.hardware}, device={device}" if cfg.hardware != Hardware.auto else f"device={device}"


def find_device(cfg: Config) -> torch.device:
    """The same, on this machine. Raises ConfigError also for a GPU that is not there."""
    import torch

    device = torch_device(cfg)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if distributed.world_size() > 1:
            device = own_device(device, count, asked(cfg, str(device)))
        if (device.index or 0) >= count:
            have = f"cuda:0 to cuda:{count - 1}" if count else "no GPU"
            where = "this machine"
            if job := slurm_client.here():
                where = f"{socket.gethostname()}, the node of SLURM job {job},"
            raise ConfigError(f"{asked(cfg, str(device))}: not present; {where} has {have}; choose one of these, or hardware=cpu")
    return device


def own_device(device: torch.device, count: int, asked: str) -> torch.device:
    """The GPU of this rank where several train together. Raises ConfigError for one GPU for all, or fewer GPUs than ranks."""
    import torch

    if device.index is not None:
        raise ConfigError(f"{asked} with {distributed.world_size()} ranks: each has a GPU of its own; write device=cuda")
    index = 0 if count == 1 else distributed.local_rank()  # a launcher may let each rank see its own only
    if 0 < count <= index:
        raise ConfigError(f"{asked}: this machine has {count} GPUs for more ranks; start as many ranks as there are GPUs")
    return torch.device("cuda", index)


def width_faults(cfg: Config, widths: dict[str, int]) -> list[str]:
    """What k asks of coders that have too few latents."""
    found = []
    for point, width in widths.items():
        size = memory.latents(cfg, width)
        how = f"num_latents={cfg.num_latents}" if cfg.num_latents else f"expansion_factor={cfg.expansion_factor}"
        have = f"{how}: the coder on {point} (width {width}) has {size} latents"
        if cfg.k > size:
            found.append(f"k={cfg.k} with {have}; lower k or raise {how.split('=')[0]}")
        elif cfg.activation == Activation.groupmax and size % cfg.k:
            found.append(f"k={cfg.k}, activation=groupmax with {have}, which k must divide into equal groups; choose a divisor")
        elif cfg.multi_topk and 4 * cfg.k > size:
            found.append(
                f"k={cfg.k}, multi_topk=True with {have}, fewer than 4k = {4 * cfg.k}; lower k or raise {how.split('=')[0]}"
            )
    return list(dict.fromkeys(found))


def share_faults(cfg: Config, widths: dict[str, int], processes: int) -> list[str]:
    """Ranks without a hookpoint of their own."""
    if not cfg.distribute_modules or processes <= len(widths):
        return []
    return [
        f"distribute_modules=True on {processes} ranks with {len(widths)} hookpoints: each rank trains whole ones; "
        f"start at most {len(widths)} ranks, or choose more hookpoints"
    ]


def length_faults(cfg: Config, planned: RunLength, samples: int) -> list[str]:
    """Batches, warmup and k decay that do not fit into a run on `samples` sequences."""
    size = f"batch_size={cfg.batch_size}" + (
        f" on {planned.batch // cfg.batch_size} ranks" if planned.batch > cfg.batch_size else ""
    )
    if planned.batch > samples:
        limit = f"max_samples={cfg.max_samples}" if samples == cfg.max_samples else f"the data gives {samples} training samples"
        return [f"{size} with {limit}: not one full batch; lower batch_size or give more samples"]
    if planned.steps < 1:
        return [
            f"grad_acc_steps={cfg.grad_acc_steps} with {planned.samples // planned.batch} batches: not one optimizer step; "
            "lower it or give more samples"
        ]
    found = []
    if cfg.max_steps is not None and planned.steps < cfg.max_steps:
        limit = f"max_samples={cfg.max_samples}" if samples == cfg.max_samples else "the data"
        found.append(
            f"max_steps={cfg.max_steps}: {limit} gives {samples} samples, which make {planned.steps} optimizer steps; "
            "raise max_samples (null: all) or lower max_steps"
        )
    how = f"{planned.samples} samples / ({size.replace('=', ' ')} x grad_acc_steps {cfg.grad_acc_steps})"
    for name, fix in [("lr_warmup_steps", "lower it, or leave it out for a twentieth of the run"), ("k_decay_steps", "lower it")]:
        value = getattr(cfg, name)
        if value and value >= planned.steps:
            found.append(f"{name}={value}: the run has {planned.steps} optimizer steps ({how}); {fix}")
    return found
