"""What the settings ask of a language model that it, or this machine, cannot do; its outline suffices to tell."""

import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from sae_transcoder import language_model, layers
from sae_transcoder.config import Config, ConfigError, LossFn


def faults(cfg: Config, outline: PreTrainedModel, device: torch.device | None) -> list[str]:
    """One message for each fault; device: where it will compute, None where that is not this machine's."""
    return [
        *loss_faults(cfg, outline.config),
        *quantization_faults(cfg, outline.config),
        *compile_faults(cfg, outline, device),
        *token_faults(cfg, language_model.text_config(outline)),
    ]


def loss_faults(cfg: Config, model_config: Any) -> list[str]:
    """End-to-end losses on a model that predicts no next token."""
    if cfg.loss_fn == LossFn.fvu or language_model.predicts_next_token(model_config):
        return []
    return [f"loss_fn={cfg.loss_fn}: {cfg.model_name} ({model_config.model_type}) predicts no next token; use loss_fn=fvu"]


def quantization_faults(cfg: Config, model_config: Any) -> list[str]:
    """Packages that are not there, and models that are quantized already."""
    own = getattr(model_config, "quantization_config", None) or {}
    if cfg.quantization is not None and own:
        return [f"quantization={cfg.quantization}: the weights of {cfg.model_name} are quantized already; set quantization=null"]
    if cfg.quantization is None and own.get("quant_method") != "bitsandbytes":
        return []
    if lacking := [name for name in ("bitsandbytes", "accelerate") if find_spec(name) is None]:
        what = f"model_name={cfg.model_name}" if own else f"quantization={cfg.quantization}"
        fix = "choose another model" if own else "set quantization=null"
        return [f"{what}: needs {' and '.join(lacking)}; run pip install -c constraints.txt -e '.[quantization]', or {fix}"]
    return []


def compile_faults(cfg: Config, outline: PreTrainedModel, device: torch.device | None) -> list[str]:
    """What torch.compile lacks; device: where it will compute, None where that is not this machine's."""
    if not cfg.compile_model:
        return []
    try:
        layers.stack(outline)
    except ConfigError:
        return [f"compile_model=True: the layers of {cfg.model_name} were not found; leave it out"]
    if device is not None and device.type == "cuda" and not any(map(shutil.which, [os.environ.get("CC", "gcc"), "gcc", "clang"])):
        return ["compile_model=True on a GPU: Triton needs a C compiler, and this machine has none; install gcc, or leave it out"]
    if device is not None and device.type == "cpu":
        if not shutil.which(compiler := os.environ.get("CXX", "g++")):
            return [f"compile_model=True on a CPU: needs a C++ compiler, and there is no {compiler}; install g++, or leave it out"]
        if not Path(sysconfig.get_path("include"), "Python.h").exists():
            return ["compile_model=True on a CPU: needs Python's headers; install python3-dev, or leave it out"]
    return []


def token_faults(cfg: Config, text_config: Any) -> list[str]:
    """Sequences longer than the model's positions, and excluded ids that it does not have."""
    found = []
    positions = getattr(text_config, "max_position_embeddings", None)
    if positions is not None and cfg.max_seq_length > positions:
        found.append(f"max_seq_length={cfg.max_seq_length}: {cfg.model_name} has {positions} positions; lower it")
    beyond = [i for i in cfg.exclude_tokens if i >= text_config.vocab_size]
    if beyond:
        found.append(
            f"exclude_tokens={cfg.exclude_tokens}: {cfg.model_name} has ids below {text_config.vocab_size}; leave out {beyond}"
        )
    return found
