"""Faults in the settings by themselves, before any model or data is looked at."""

import math
import re
from dataclasses import fields

from sae_transcoder.config import (
    DEFAULTS,
    PATH_FIELDS,
    Config,
    ConfigError,
    Hardware,
    LossFn,
    Tracker,
    TrackerMode,
)  # fmt: skip
from sae_transcoder.config.architecture_checks import architecture_faults
from sae_transcoder.config.dataset_checks import dataset_faults
from sae_transcoder.config.naming import MAX_NAME
from sae_transcoder.config.optimizer_checks import optimizer_faults
from sae_transcoder.config.paths import expanded, is_path
from sae_transcoder.config.slurm_checks import slurm_faults
from sae_transcoder.config.spelling import did_you_mean
from sae_transcoder.config.type_checks import type_faults
from sae_transcoder.metric_names import END_TO_END, NAMES

AT_LEAST = {f.name: f.metadata["at_least"] for f in fields(Config) if "at_least" in f.metadata}
AT_MOST = {f.name: f.metadata["at_most"] for f in fields(Config) if "at_most" in f.metadata}


def faults(cfg: Config) -> list[str]:
    """One message for each fault; empty if nothing is wrong."""
    groups = (
        bound_faults, training_faults, hookpoint_faults, model_faults, dataset_faults, architecture_faults, optimizer_faults,
        evaluation_faults, hardware_faults, slurm_faults, tracker_faults, folder_name_faults,
    )  # fmt: skip
    return type_faults(cfg) or [fault for group in groups for fault in group(cfg)]


def bound_faults(cfg: Config) -> list[str]:
    """Numbers outside the bounds of their fields."""
    too_small = [
        f"{name}={value}: must be at least {least}" + (", and finite" if isinstance(least, float) else "")
        for name, least in AT_LEAST.items()
        if (value := getattr(cfg, name)) is not None and not least <= value < math.inf
    ]
    too_large = [
        f"{name}={value}: must be at most {most:,}"
        for name, most in AT_MOST.items()
        if (value := getattr(cfg, name)) is not None and value > most
    ]
    return too_small + too_large


def training_faults(cfg: Config) -> list[str]:
    """Faults of the loss and the seeds."""
    faults = list_faults(cfg, "init_seeds")
    if any(not -(2**63) <= seed < 2**64 for seed in cfg.init_seeds):
        faults.append(f"init_seeds={cfg.init_seeds}: torch's seeds have 64 bits; choose smaller ones")
    if cfg.loss_fn == LossFn.fvu:
        return faults
    # ce and kl: the coders run inside the language model's forward.
    if cfg.distribute_modules:
        faults.append(
            f"distribute_modules=True with loss_fn={cfg.loss_fn}: the forward passes through all coders, which must lie on one rank; "
            "leave distribute_modules out, and the ranks share each batch"
        )
    if cfg.micro_acc_steps > 1:
        faults.append(
            f"micro_acc_steps={cfg.micro_acc_steps} with loss_fn={cfg.loss_fn}: the forward passes through the coder whole; "
            "raise grad_acc_steps and lower batch_size instead"
        )
    if cfg.forward_batch_size is not None:
        faults.append(
            f"forward_batch_size={cfg.forward_batch_size} with loss_fn={cfg.loss_fn}: the forward passes through the coders, whose batch is whole; "
            "leave it out, raise grad_acc_steps and lower batch_size instead"
        )
    return faults


def list_faults(cfg: Config, *names: str) -> list[str]:
    """Lists among these fields that are empty or name something twice."""
    return [
        f"{name}={values}: must name at least one, and none twice"
        for name in names
        if (values := getattr(cfg, name)) is not None and (not values or len(set(values)) < len(values))
    ]


def hookpoint_faults(cfg: Config) -> list[str]:
    """Faults of the fields that choose the hookpoints."""
    faults = list_faults(cfg, "layers", "hookpoints")
    if cfg.layers is not None and cfg.hookpoints is not None:
        faults.append(
            f"layers={cfg.layers} and hookpoints={cfg.hookpoints}: both name modules, and a preset may set one; write layers=null or hookpoints=null"
        )
    if cfg.layers is not None and cfg.layer_stride != 1:
        faults.append(f"layers={cfg.layers} and layer_stride={cfg.layer_stride}: layers are named or counted; set one of them")
    if cfg.site is not None and cfg.hookpoints is not None:
        faults.append(f"site={cfg.site} and hookpoints={cfg.hookpoints}: hookpoints name whole modules; leave site out")
    if cfg.layers and min(cfg.layers) < 0:
        faults.append(f"layers={cfg.layers}: layers are counted from 0")
    return faults


def model_faults(cfg: Config) -> list[str]:
    """A revision of a model that has none."""
    if cfg.revision is not None and (cfg.model_name == "demo" or is_path(cfg.model_name)):
        return [f"revision={cfg.revision} with model_name={cfg.model_name}: only models of the hub have revisions; leave it out"]
    return []


def path_faults(cfg: Config) -> list[str]:
    """Paths that cannot be expanded in this environment; for a run, which uses them all."""
    faults: list[str] = []
    for name in PATH_FIELDS:
        if (value := getattr(cfg, name)) is not None:
            try:
                expanded(value, name)
            except ConfigError as error:
                faults += error.faults
    return faults


def evaluation_faults(cfg: Config) -> list[str]:
    """An objective that is no metric, or is not measured."""
    if cfg.objective not in NAMES:
        meant = did_you_mean(cfg.objective, NAMES, f"choose one of {', '.join(NAMES)}")
        return [f"objective={cfg.objective}: there is no such held-out metric; {meant}"]
    if not cfg.eval_end_to_end and cfg.objective in END_TO_END:
        return [f"objective={cfg.objective} with eval_end_to_end=False: it is not measured then; set one of them"]
    return []


def hardware_faults(cfg: Config) -> list[str]:
    """A device that contradicts `workers` or `hardware`, and two ways of stopping before a run."""
    faults = []
    if cfg.workers is not None and cfg.workers > 1 and cfg.device is not None and ":" in cfg.device:
        faults.append(f"workers={cfg.workers} with device={cfg.device}: that is one device; leave device out, or use hardware=gpu")
    device_types = {Hardware.gpu: "cuda", Hardware.cpu: "cpu"}
    if cfg.hardware in device_types and cfg.device is not None and not cfg.device.startswith(device_types[cfg.hardware]):
        faults.append(f"device={cfg.device} with hardware={cfg.hardware}: they contradict each other; leave one out")
    if cfg.dry_run and cfg.prepare:
        faults.append("dry_run=True and prepare=True: a dry run downloads no weights; leave one out")
    return faults


def tracker_faults(cfg: Config) -> list[str]:
    """Tracker settings that contradict each other, or that no tracker would see."""
    faults = []
    if cfg.tracker == Tracker.none:
        for name in ("tracker_mode", "project", "entity", "group", "tags"):
            if getattr(cfg, name) != DEFAULTS[name]:
                faults.append(f"{name}={getattr(cfg, name)} with tracker=none: choose tracker=wandb or trackio, or leave it out")
    if cfg.tracker == Tracker.trackio:
        online = cfg.tracker_mode == TrackerMode.online
        if cfg.entity and not online:
            faults.append(
                f"entity={cfg.entity} with tracker=trackio: a local database has no owner; leave it out or set tracker_mode=online"
            )
        if online and not cfg.entity:
            faults.append("tracker_mode=online with tracker=trackio: set entity to the owner of the Hugging Face Space")
    return faults


def folder_name_faults(cfg: Config) -> list[str]:
    """A `sweep_name` or `run_name` that cannot be a folder's name."""
    faults = []
    for name, value in (("sweep_name", cfg.sweep_name), ("run_name", cfg.run_name)):
        if value is not None and (not re.fullmatch(r"[^/\\\0]+", value) or value in (".", "..")):
            faults.append(f"{name}={value!r}: must be the name of one folder; put the path into save_dir")
        elif value is not None and (num_bytes := len(value.encode())) > MAX_NAME:
            faults.append(
                f"{name}={value[:20]}...: has {num_bytes} bytes, and a folder's name may have {MAX_NAME} here; choose a shorter one"
            )
    return faults
