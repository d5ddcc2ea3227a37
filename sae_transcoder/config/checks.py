"""What is wrong with the settings by themselves, before any model or data is looked at."""

import math
import re
from dataclasses import asdict, fields
from difflib import get_close_matches
from pathlib import Path

from sae_transcoder import slurm_client
from sae_transcoder.config import (
    Activation,
    Config,
    DatasetKind,
    Hardware,
    HardwareConfig,
    LossFn,
    ModelType,
    Optimizer,
    SlurmConfig,
    Tracker,
    TrackerMode,
)  # fmt: skip
from sae_transcoder.metric_names import METRICS, NAMES

DEFAULTS = asdict(Config())

# Fields that must be at least so large; null is allowed where the field allows it.
AT_LEAST = dict(
    layer_stride=1, max_samples=1, max_seq_length=2, shuffle_seed=0, shuffle_buffer=1, eval_samples=1, exclude_first_tokens=0,
    max_norm_multiple=1.0, expansion_factor=1, num_latents=0, k=1, lr_warmup_steps=0, weight_decay=0.0, batch_size=1,
    grad_acc_steps=1, micro_acc_steps=1, max_steps=1, auxk_alpha=0.0, dead_feature_threshold=0, k_decay_steps=0, log_every=1,
    threads=1, forward_batch_size=1, runs_per_pack=1, workers=1, nodes=1, tasks_per_node=1, cpus=1, gpu_memory_gib=0.0,
    signal_delay=1, max_timeouts=0, array_parallelism=1, save_every=1, keep_every=1, eval_every=1,
)  # fmt: skip


AT_MOST = {"threads": 1024, "num_latents": 2**31, "expansion_factor": 2**20, "shuffle_seed": 2**63}


def faults(cfg: Config) -> list[str]:
    """One message for each fault; empty if nothing is wrong."""
    found = [
        f"{name}={value}: must be at least {least}" + (", and finite" if isinstance(least, float) else "")
        for name, least in AT_LEAST.items()
        if (value := getattr(cfg, name)) is not None and not least <= value < math.inf
    ]
    found += [
        f"{name}={value}: must be at most {most:,}"
        for name, most in AT_MOST.items()
        if (value := getattr(cfg, name)) is not None and value > most
    ]
    if cfg.loss_fn != LossFn.fvu and cfg.distribute_modules:
        found.append(
            f"distribute_modules=True with loss_fn={cfg.loss_fn}: the forward passes through all coders, which must lie on one rank; "
            "leave distribute_modules out, and the ranks share each batch"
        )
    if cfg.loss_fn != LossFn.fvu and cfg.micro_acc_steps > 1:
        found.append(
            f"micro_acc_steps={cfg.micro_acc_steps} with loss_fn={cfg.loss_fn}: the forward passes through the coder whole; "
            "raise grad_acc_steps and lower batch_size instead"
        )
    if cfg.loss_fn != LossFn.fvu and cfg.forward_batch_size is not None:
        found.append(
            f"forward_batch_size={cfg.forward_batch_size} with loss_fn={cfg.loss_fn}: the forward passes through the coders, whose batch is whole; "
            "leave it out, raise grad_acc_steps and lower batch_size instead"
        )
    if cfg.lr is not None and not 0 < cfg.lr < math.inf:
        found.append(f"lr={cfg.lr}: must be above 0 and finite, or null for the automatic rate")
    if any(not -(2**63) <= seed < 2**64 for seed in cfg.init_seeds):
        found.append(f"init_seeds={cfg.init_seeds}: torch's seeds have 64 bits; choose smaller ones")
    if cfg.layers is not None and cfg.hookpoints is not None:
        found.append(f"layers={cfg.layers} and hookpoints={cfg.hookpoints}: both name modules; set one of them")
    if cfg.layers is not None and cfg.layer_stride != 1:
        found.append(f"layers={cfg.layers} and layer_stride={cfg.layer_stride}: layers are named or counted; set one of them")
    if cfg.site is not None and cfg.hookpoints is not None:
        found.append(f"site={cfg.site} and hookpoints={cfg.hookpoints}: hookpoints name whole modules; leave site out")
    for name in ("layers", "hookpoints", "init_seeds"):
        values = getattr(cfg, name)
        if values is not None and (not values or len(set(values)) < len(values)):
            found.append(f"{name}={values}: must name at least one, and none twice")
    if cfg.layers and min(cfg.layers) < 0:
        found.append(f"layers={cfg.layers}: layers are counted from 0")
    if min(cfg.exclude_tokens, default=0) < 0:
        found.append(f"exclude_tokens={cfg.exclude_tokens}: token ids are 0 or above")
    if cfg.exclude_first_tokens >= cfg.max_seq_length:
        found.append(
            f"exclude_first_tokens={cfg.exclude_first_tokens} with max_seq_length={cfg.max_seq_length}: no position is left"
        )
    if cfg.model_type == ModelType.transcoder and cfg.normalize_decoder:
        found.append("normalize_decoder=True with model_type=transcoder: its decoder starts at zero and cannot be; leave it out")
    if cfg.activation == Activation.groupmax and cfg.multi_topk:
        found.append("multi_topk=True with activation=groupmax: only topk has a 4k-latent version; set one of them")
    if cfg.objective not in NAMES:
        near = get_close_matches(cfg.objective, NAMES, n=3)
        found.append(
            f"objective={cfg.objective}: there is no such held-out metric; choose {' or '.join(near) or 'one of ' + ', '.join(NAMES)}"
        )
    elif not cfg.eval_end_to_end and cfg.objective in [
        n for c in ("behavior", "performance") for n in METRICS[f"model_{c}_preservation"]
    ]:
        found.append(f"objective={cfg.objective} with eval_end_to_end=False: it is not measured then; set one of them")
    if cfg.sweep_name is not None and (not re.fullmatch(r"[^/\\\0]+", cfg.sweep_name) or cfg.sweep_name in (".", "..")):
        found.append(f"sweep_name={cfg.sweep_name!r}: must be the name of one folder; put the path into save_dir")
    if cfg.workers is not None and cfg.workers > 1 and cfg.device is not None and ":" in cfg.device:
        found.append(f"workers={cfg.workers} with device={cfg.device}: that is one device; leave device out, or use hardware=gpu")
    if cfg.optimizer == Optimizer.signum:
        for name in ("weight_decay", "lr_warmup_steps"):
            if getattr(cfg, name) is not None:
                found.append(f"{name}={getattr(cfg, name)} with optimizer=signum: it has none; leave {name} out")
    if cfg.dataset_kind == DatasetKind.hub and cfg.max_samples is None and cfg.max_steps is None:
        found.append("max_samples=null with dataset_kind=hub: a stream has no known end; set max_samples or max_steps")
    if cfg.eval_split is not None and cfg.dataset_kind not in (DatasetKind.hub, DatasetKind.pretokenized):
        found.append(
            f"eval_split={cfg.eval_split} with dataset_kind={cfg.dataset_kind}: only hub data sets have splits; leave it out"
        )
    kinds = {Hardware.gpu: "cuda", Hardware.cpu: "cpu"}
    if cfg.hardware in kinds and cfg.device is not None and not cfg.device.startswith(kinds[cfg.hardware]):
        found.append(f"device={cfg.device} with hardware={cfg.hardware}: they contradict each other; leave one out")
    found += unread_faults(cfg)
    found += slurm_faults(cfg)
    found += tracker_faults(cfg)
    if (cfg.run_name is not None and not re.fullmatch(r"[^/\\\0]+", cfg.run_name)) or cfg.run_name in (".", ".."):
        found.append(f"run_name={cfg.run_name!r}: must be the name of one folder; put the path into save_dir")
    return found


# Fields of the data, and the kinds that read them; others would ignore what was set.
READ_BY = {
    "dataset_config": {DatasetKind.hub, DatasetKind.pretokenized},
    "dataset_split": {DatasetKind.hub, DatasetKind.pretokenized},
    "text_column": {DatasetKind.hub, DatasetKind.local_text},
    "tokens_column": {DatasetKind.pretokenized},
    "tokens_dtype": {DatasetKind.memmap},
    "shuffle_buffer": {DatasetKind.hub, DatasetKind.pretokenized},
}


def unread_faults(cfg: Config) -> list[str]:
    """Settings that this kind of data or model does not read."""
    found = []
    for name, kinds in READ_BY.items():
        if getattr(cfg, name) != DEFAULTS[name] and cfg.dataset_kind not in kinds:
            found.append(
                f"{name}={getattr(cfg, name)} with dataset_kind={cfg.dataset_kind}: read by {', '.join(sorted(kinds))} only; leave it out"
            )
    if cfg.dataset_kind == DatasetKind.demo and cfg.dataset_name != "demo":
        found.append(
            f"dataset_name={cfg.dataset_name} with dataset_kind=demo: it has one text only; choose dataset=local_text or hub for another"
        )
    if cfg.revision is not None and (cfg.model_name == "demo" or Path(cfg.model_name).is_dir()):
        found.append(
            f"revision={cfg.revision} with model_name={cfg.model_name}: only models of the hub have revisions; leave it out"
        )
    return found


def tracker_faults(cfg: Config) -> list[str]:
    """Tracker settings that contradict each other, or that no tracker would see."""
    found = []
    if cfg.tracker == Tracker.none:
        for name in ("tracker_mode", "project", "entity", "group", "tags"):
            if getattr(cfg, name) != DEFAULTS[name]:
                found.append(f"{name}={getattr(cfg, name)} with tracker=none: choose tracker=wandb or trackio, or leave it out")
    if cfg.tracker == Tracker.trackio:
        online = cfg.tracker_mode == TrackerMode.online
        if cfg.entity and not online:
            found.append(
                f"entity={cfg.entity} with tracker=trackio: a local database has no owner; leave it out or set tracker_mode=online"
            )
        if online and not cfg.entity:
            found.append("tracker_mode=online with tracker=trackio: set entity to the owner of the Hugging Face Space")
    return found


# Options of sbatch that are not the user's to set: those that fields have, and those that submitit needs.
TAKEN = {
    "partition": "partition", "account": "account", "qos": "qos", "constraint": "constraint", "gres": "gres", "nodes": "nodes",
    "ntasks-per-node": "tasks_per_node", "cpus-per-task": "cpus", "mem": "memory", "time": "time", "array": "array_parallelism",
    "signal": "signal_delay", "output": None, "error": None, "open-mode": None, "requeue": None, "no-requeue": None, "ntasks": "tasks_per_node",
    "wrap": None, "test-only": None, "parsable": None, "job-name": "sweep_name",
}  # fmt: skip


def slurm_faults(cfg: Config) -> list[str]:
    """What SLURM's settings say against each other, or to no SLURM."""
    if cfg.hardware != Hardware.slurm:
        own = [f.name for f in fields(SlurmConfig) if f.name not in {f.name for f in fields(HardwareConfig)}]
        return [
            f"{name}={getattr(cfg, name)} with hardware={cfg.hardware}: read by hardware=slurm only; leave it out, or set hardware=slurm"
            for name in own
            if getattr(cfg, name) != DEFAULTS[name]
        ]
    found = []
    try:
        if slurm_client.seconds(cfg.time) <= cfg.signal_delay:
            found.append(
                f"signal_delay={cfg.signal_delay} with time={cfg.time}: the job would stop at once; raise time or lower signal_delay"
            )
    except ValueError:
        found.append(f"time={cfg.time}: write minutes, as 90, or [days-]hours:minutes:seconds, as 4:00:00 or 1-12:00:00")
    if cfg.memory is not None and not re.fullmatch(r"\d+[KMGT]?", cfg.memory):
        found.append(f"memory={cfg.memory}: write a number with K, M, G or T, as 32G")
    for option in cfg.sbatch:
        match = re.fullmatch(r"--([a-z-]+)(=.*)?", option)
        if match is None:
            found.append(f"sbatch={option}: write each option as --name=value or --name")
        elif match[1] in TAKEN:
            fix = (
                f"set {TAKEN[match[1]]} instead"
                if TAKEN[match[1]]
                else "it is needed for requeueing and for the logs; leave it out"
            )
            found.append(f"sbatch={option}: {fix}")
    if cfg.workers is not None:
        found.append(
            f"workers={cfg.workers} with hardware=slurm: each pack is a job; leave it out, and set runs_per_pack or array_parallelism"
        )
    gpus = re.search(r"gpu(?::[^:,]+)*?(?::(\d+))?(?:\(|,|$)", cfg.gres or "")
    further = any("gpus" in option for option in cfg.sbatch)
    if cfg.device is None or cfg.device.startswith("cuda"):
        count = int(gpus[1] or 1) if gpus else 0
        if not count and not further:
            found.append(
                f"gres={cfg.gres or 'null'} with device={cfg.device}: the job would have no GPU; set gres=gpu:1, or device=cpu"
            )
        elif count and count < cfg.tasks_per_node:
            found.append(
                f"gres={cfg.gres} with tasks_per_node={cfg.tasks_per_node}: fewer GPUs than tasks; "
                f"set gres=gpu:{cfg.tasks_per_node}, or lower tasks_per_node"
            )
    return found
