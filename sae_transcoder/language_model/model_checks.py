"""Checks whether a language model, and this machine, can do what the settings ask: from the model's outline, and its files' headers."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sae_transcoder.config import Config, ConfigError, LossFn
from sae_transcoder.language_model import loading
from sae_transcoder.language_model.compilation import CompileObstacle
from sae_transcoder.language_model.load_errors import explain_load_errors
from sae_transcoder.language_model.model_class import auto_class, predicts_next_token
from sae_transcoder.language_model.weights import named, weight_faults
from sae_transcoder.process.tensor_headers import tensor_headers

INTEGERS = {"I8", "U8", "I16", "I32", "I64"}  # number formats of safetensors


def faults(cfg: Config, outline: PreTrainedModel, obstacle: CompileObstacle | None) -> list[str]:
    """Returns one message for each fault; obstacle: why its layers would not be compiled (layers.compile_obstacle)."""
    return [
        *loss_faults(cfg, outline.config),
        *quantization_faults(cfg, outline.config),
        *compile_faults(cfg, obstacle),
        *token_faults(cfg, loading.text_config(outline)),
    ]


def stored_weight_faults(cfg: Config, layers: int | None = None) -> list[str]:
    """What is wrong with the weights on this machine, told from the files' headers; empty where they are not here yet.

    layers: how many of the model's first layers the run loads; None: all.
    """
    model_config = loading.config_of(cfg, layers)
    if getattr(model_config, "quantization_config", None) is not None:
        return []  # whose tensors only its own package knows
    kind: Any = auto_class(cfg, model_config)
    options: dict[str, Any] = dict(config=model_config, revision=cfg.revision, local_files_only=True, device_map={"": "meta"})
    try:
        with explain_load_errors(cfg, "weights"), loading.quiet():
            model, info = kind.from_pretrained(
                loading.model_path(cfg),
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                trust_remote_code=cfg.trust_remote_code,
                **options,
            )
    except ConfigError:
        if not os.path.isdir(loading.model_path(cfg)):
            return []  # it is downloaded when the run begins
        raise
    return weight_faults(cfg, model, info, layers) + folder_faults(cfg)


def folder_faults(cfg: Config) -> list[str]:
    """Files of a local model that would be loaded as something else than they are: an adapter beside it, integers without their scales."""
    folder = Path(loading.model_path(cfg))
    faults = []
    if (folder / "adapter_config.json").is_file():
        faults.append(
            f"model_name={cfg.model_name}: an adapter lies beside the model (adapter_config.json), which is loaded with it only where peft is "
            "installed; merge it into the model and save that, or move it away"
        )
    integers = [
        name
        for path in sorted(folder.glob("*.safetensors"))
        for name, (_, number_format) in tensor_headers(path).items()
        if number_format in INTEGERS and name.endswith(".weight")
    ]
    if integers:
        faults.append(
            f"model_name={cfg.model_name}: its weights are integers ({named(integers)}), and config.json has no quantization_config that says "
            "what they stand for; give the config that they were saved with"
        )
    return faults


def loss_faults(cfg: Config, model_config: Any) -> list[str]:
    """Faults of an end-to-end loss on a model that predicts no next token."""
    if cfg.loss_fn == LossFn.fvu or predicts_next_token(model_config):
        return []
    return [f"loss_fn={cfg.loss_fn}: {cfg.model_name} ({model_config.model_type}) predicts no next token; use loss_fn=fvu"]


def quantization_faults(cfg: Config, model_config: Any) -> list[str]:
    """Faults of packages that are not installed, and of models that are quantized already."""
    checkpoint = getattr(model_config, "quantization_config", None) or {}
    if cfg.quantization is not None and checkpoint:
        return [f"quantization={cfg.quantization}: the weights of {cfg.model_name} are quantized already; set quantization=null"]
    if cfg.quantization is None and checkpoint.get("quant_method") != "bitsandbytes":
        return []
    if missing := [name for name in ("bitsandbytes", "accelerate") if find_spec(name) is None]:
        setting = f"model_name={cfg.model_name}" if checkpoint else f"quantization={cfg.quantization}"
        fix = "choose another model" if checkpoint else "set quantization=null"
        return [f"{setting}: needs {' and '.join(missing)}; run pip install -c constraints.txt -e '.[quantization]', or {fix}"]
    return []


def compile_faults(cfg: Config, obstacle: CompileObstacle | None) -> list[str]:
    """Faults of compile_model=true where the model cannot be compiled."""
    if not cfg.compile_model or obstacle is None:
        return []
    return [f"compile_model=True: {obstacle.reason}; {', or '.join(filter(None, [obstacle.fix, 'leave it out']))}"]


def token_faults(cfg: Config, text_config: Any) -> list[str]:
    """Faults of sequences longer than the model's positions, and of excluded ids that it does not have."""
    faults = []
    positions = getattr(text_config, "max_position_embeddings", None)
    if positions is not None and cfg.max_seq_length > positions:
        faults.append(f"max_seq_length={cfg.max_seq_length}: {cfg.model_name} has {positions} positions; lower it")
    beyond = [i for i in cfg.exclude_tokens if i >= text_config.vocab_size]
    if beyond:
        faults.append(
            f"exclude_tokens={cfg.exclude_tokens}: {cfg.model_name} has ids below {text_config.vocab_size}; leave out {beyond}"
        )
    return faults
