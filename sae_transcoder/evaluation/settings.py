"""The config of an evaluation: the settings in the coders' files, and overrides of them."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from sae_transcoder.coder.stored_coders import coder_settings
from sae_transcoder.config import (
    FIELDS,
    Config,
    ConfigError,
    DatasetConfig,
    DatasetKind,
    HardwareConfig,
    ModelConfig,
    ModelType,
    checks,
)
from sae_transcoder.config.composer import composed_on
from sae_transcoder.config.errors import raise_faults
from sae_transcoder.config.paths import same_place
from sae_transcoder.config.spelling import did_you_mean
from sae_transcoder.config.type_checks import type_faults
from sae_transcoder.config.unknown_names import name_hint
from sae_transcoder.data import sources
from sae_transcoder.data.mixture import parts
from sae_transcoder.evaluation import other_data
from sae_transcoder.run_store import data_origin, run_files
from sae_transcoder.run_store.checked_files import damaged, read_object
from sae_transcoder.run_store.data_origin import DataOrigin

SELECTION = ("layers", "layer_stride", "site", "hookpoints")
GROUPS = ("model", "dataset", "hardware")
# The fields that an evaluation reads; any other would be accepted and ignored.
READ_FIELDS = {f.name for group in (ModelConfig, DatasetConfig, HardwareConfig) for f in fields(group)} - {
    "max_samples",
    "distribute_modules",
}
READ_FIELDS |= {*SELECTION, "batch_size", "eval_end_to_end", "save_dir"}


def refuse_unread(overrides: Sequence[str], own: Iterable[str] = ()) -> None:
    """Raises ConfigError for overrides that change nothing in an evaluation. own: further names that may be meant."""
    faults = []
    for override in overrides:
        name = override.split("=")[0].lstrip("+~")
        if name in READ_FIELDS or name in GROUPS:
            continue
        if name in FIELDS:
            faults.append(f"{override}: {name} is not read, the coders are as they were trained; leave it out")
        else:
            unknown = f"there is no field {name} here; {did_you_mean(name, READ_FIELDS | {*GROUPS, *own}, 'see sae-eval --help')}"
            faults.append(f"{override}: {name_hint(name, override.partition('=')[2], FIELDS) or unknown}")
    if faults:
        raise ConfigError(*faults)


# What runs did that were trained before there were these fields.
BEFORE = {"prepend_bos": False, "special_tokens_in_text": "parse"}


def run_settings(run: Path) -> dict[str, Any]:
    """The settings that a run was trained with; fields that this version does not have are left out. Raises DamagedFile."""
    settings = run_files.read_config(run)
    if missing := [name for name in REQUIRED if name not in settings]:
        fix = f"restore it, or evaluate a copy of {run}/coders elsewhere"
        raise damaged(run / run_files.CONFIG, f"lacks {', '.join(missing)}", fix)
    return BEFORE | settings


UNKNOWN = "???"  # OmegaConf's mark of a value that is missing
REQUIRED = [f.name for f in fields(Config) if f.default == UNKNOWN]

# {name in the config.json that sparsify's command line writes: name in Config}
SPARSIFY_NAMES = {
    "model": "model_name", "revision": "revision", "dataset": "dataset_name", "split": "dataset_split", "ctx_len": "max_seq_length",
    "text_column": "text_column", "shuffle_seed": "shuffle_seed", "exclude_tokens": "exclude_tokens",
}  # fmt: skip


def sparsify_settings(root: Path, coder_dirs: dict[str, Path]) -> dict[str, Any]:
    """The settings in sparsify's files: model_type from the coders, model and data from its command line's config.json."""
    transcodes = {name: coder_settings(path)["transcode"] for name, path in coder_dirs.items()}
    if len(set(transcodes.values())) > 1:
        raise ConfigError(f"{root}: holds SAEs and transcoders ({transcodes}); evaluate their folders apart")
    model_type = ModelType.transcoder if next(iter(transcodes.values())) else ModelType.sae
    settings: dict[str, Any] = {
        "model_type": str(model_type),
        "model_name": UNKNOWN,
        "dataset_kind": "hub",
        "dataset_name": UNKNOWN,
    }
    written = read_object(root / "config.json", "restore it, or remove it and give model_name and dataset_name") or {}
    return settings | {name: written[theirs] for theirs, name in SPARSIFY_NAMES.items() if theirs in written}


def evaluation_config(base: dict[str, Any], overrides: Sequence[str]) -> tuple[Config, list[str]]:
    """`base` with overrides: groups first, then fields; and notes of what `base` says of its own data set and another one does not have.

    Raises ConfigError for settings that are missing or wrong by themselves, and for columns that the data do not have.
    """
    faults = [
        f"{name} is not known from the coders' files: add {name.removesuffix('_name')}=CHOICE or {name}=VALUE"
        for name, value in base.items()
        if value == UNKNOWN and not any(o.split("=")[0] in (name, name.removesuffix("_name")) for o in overrides)
    ]
    raise_faults(faults)
    cfg = composed_on(base, overrides)
    raise_faults(type_faults(cfg))
    cfg, notes = other_data.fitted(cfg, base, other_data.given_fields(overrides, GROUPS))
    raise_faults(checks.faults(cfg))
    return cfg, notes


def same_text(part: Config, other: Config) -> bool:
    """Whether two data sets, neither of them a mixture, are the same, or are local files of which one is in both."""
    if part.dataset_config != other.dataset_config:
        return False
    return same_place(part.dataset_name, other.dataset_name) or bool(set(files_of(part)) & set(files_of(other)))


def files_of(part: Config) -> list[Path]:
    """The local files of a data set; empty for one that is not there or not local."""
    try:
        return [path.resolve() for path in sources.local_paths(part) or []]
    except ConfigError:
        return []


def are_same_parts(cfg: Config, trained: Config) -> bool:
    """Whether two data sets have the same parts in the same order, by name."""
    mine, theirs = parts(cfg), parts(trained)
    return len(mine) == len(theirs) and all(
        same_place(a.dataset_name, b.dataset_name) and a.dataset_config == b.dataset_config
        for a, b in zip(mine, theirs, strict=True)
    )


def refuse_trained_on(trained: Config, cfg: Config, run: Path) -> DataOrigin | None:
    """Returns what the run held out, where it was trained on other documents of the same data, which must not be measured; otherwise None.

    Raises ConfigError where the coders in the directory `run` may have been trained on the sequences to measure.
    """
    split = cfg.eval_split or cfg.dataset_split
    same_kind = cfg.dataset_kind == trained.dataset_kind != DatasetKind.demo
    overlap = any(same_text(part, other) for part in parts(cfg) for other in parts(trained))
    if not same_kind or not overlap or split != trained.dataset_split:
        return None
    origin = data_origin.read(run)
    if cfg.dataset_kind != DatasetKind.memmap and origin is None:
        raise ConfigError(
            f"{run}: trained by an earlier version, which held out other sequences of {cfg.dataset_name}; set eval_split or another dataset"
        )
    order_fields = (  # that decide which sequences come first
        "eval_split",
        "dataset_weights",
        "text_column",
        "messages_column",
        "tokens_column",
        "prepend_bos",
        "separator",
        "special_tokens_in_text",
        "max_seq_length",
        "shuffle_seed",
        "shuffle_buffer",
        "revision",
    )
    changed = [name for name in order_fields if getattr(cfg, name) != getattr(trained, name)]
    if not are_same_parts(cfg, trained):
        changed.append("dataset_name")
    if not same_place(cfg.model_name, trained.model_name):
        changed.append("model_name")
    if cfg.eval_samples > trained.eval_samples:
        changed.append("eval_samples")
    if changed:
        changes = ", ".join(f"{name}={getattr(cfg, name)} (in training {getattr(trained, name)})" for name in changed)
        raise ConfigError(
            f"{changes}: held out were documents of {cfg.dataset_name} at the start of the order of training, with these "
            "settings others would be measured, on which the coders may have been trained; leave it as it was, or set eval_split or another dataset"
        )
    return origin
