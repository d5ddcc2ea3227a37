"""A run's name and directory, its signature, and what other files record of its settings."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import Any

from sae_transcoder.config.derived import site
from sae_transcoder.config.fields import Config
from sae_transcoder.config.fields.architecture import WITH_THRESHOLD
from sae_transcoder.config.fields.dataset import DatasetConfig
from sae_transcoder.config.fields.evaluation import EvaluationConfig
from sae_transcoder.config.fields.model import ModelConfig
from sae_transcoder.config.learning_rate import length_rule
from sae_transcoder.config.paths import expanded

MAX_NAME = 200  # bytes of a folder's name; most file systems take 255, and files beside it need some more


def result_settings(cfg: Config) -> dict[str, Any]:
    """The settings that change the result, as written. Fields that were added count where they are not at their default, so that what is
    named by a hash of the settings keeps its name from one version to the next."""
    settings = {
        f.name: getattr(cfg, f.name)
        for f in fields(cfg)
        if f.metadata.get("result", True) and not (f.metadata.get("added") and getattr(cfg, f.name) == f.default)
    }
    if length_rule(cfg):  # null was sparsify's rate before there was such a rule
        settings["lr"] = "by the run's length"
    return settings


def signature(cfg: Config) -> str:
    """Eight hex digits: a hash of every setting that changes the result, and of the rule that gives a learning rate where none is set."""
    rule = length_rule(cfg)
    return settings_hash(result_settings(cfg) | ({"lr_rule": astuple(rule)} if rule else {}))


def settings_hash(values: Mapping[str, Any]) -> str:
    """Eight hex digits of settings, whatever their order."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def run_name(cfg: Config) -> str:
    """`run_name` as set, or a readable and unique one such as `transcoder-smollm2_135m-L6.12-mlp-k16-x8-1a2b3c4d`."""
    if cfg.run_name:
        return cfg.run_name
    model = re.sub(r"[^a-z0-9.]+", "_", Path(cfg.model_name).name.lower()).strip("_.")
    if cfg.hookpoints:
        where = ["hooks"]
    else:
        stride = f"all{cfg.layer_stride}" if cfg.layer_stride > 1 else "all"
        where = ["L" + ".".join(map(str, cfg.layers)) if cfg.layers else stride, site(cfg)]
    size = f"n{cfg.num_latents}" if cfg.num_latents else f"x{cfg.expansion_factor}"
    coder = [*kinds(cfg), f"k{cfg.k}", size, signature(cfg)]
    name = "-".join([cfg.model_type, model, *where, *coder])
    if len(name) <= MAX_NAME:
        return name
    if cfg.layers and not cfg.hookpoints:  # the signature tells those with the same ends apart
        where[0] = f"L{cfg.layers[0]}..{cfg.layers[-1]}"
    return "-".join([cfg.model_type, model[:60], *where, *coder])


def kinds(cfg: Config) -> list[str]:
    """The words of a run's name for the kind of its coders; none for sparsify's own, whose runs had no such words from the start."""
    nested = ["matryoshka"] if cfg.matryoshka_widths is not None else []
    return nested + ([str(cfg.activation)] if cfg.activation in WITH_THRESHOLD else [])


def run_dir(cfg: Config) -> Path:
    """The run's directory: `save_dir/run_name`, in a sweep `save_dir/sweep_name/run_name`."""
    return sweep_dir(cfg) / run_name(cfg)


def sweep_dir(cfg: Config) -> Path:
    """The folder of a sweep's runs, `save_dir/sweep_name`; of a single run `save_dir`."""
    return save_dir(cfg) / (cfg.sweep_name or "")


def save_dir(cfg: Config) -> Path:
    """The folder of all runs, relative or absolute as it is set. Raises ConfigError where it cannot be expanded."""
    return Path(expanded(cfg.save_dir, "save_dir"))


def summary(cfg: Config) -> dict[str, Any]:
    """The config as plain values, with the run's name and signature; for trackers and status files."""
    return asdict(cfg) | {"run_name": run_name(cfg), "signature": signature(cfg)}


def evaluation_settings(cfg: Config) -> dict[str, Any]:
    """The settings that say what was measured on which tokens; for eval.json."""
    groups = (ModelConfig, DatasetConfig, EvaluationConfig)
    names = ["model_type", *(f.name for group in groups for f in fields(group)), "batch_size"]
    return {name: getattr(cfg, name) for name in names if name not in ("cache_dir", "eval_every")}
