"""What the settings ask of a language model that it, or this machine, cannot do; its outline suffices to tell."""

from importlib.util import find_spec
from typing import Any

from transformers import PreTrainedModel

from sae_transcoder.config import Config, LossFn
from sae_transcoder.language_model import loading
from sae_transcoder.language_model.compilation import Obstacle


def faults(cfg: Config, outline: PreTrainedModel, uncompiled: Obstacle | None) -> list[str]:
    """One message for each fault; uncompiled: why its layers would not be compiled (layers.uncompiled)."""
    return [
        *loss_faults(cfg, outline.config),
        *quantization_faults(cfg, outline.config),
        *compile_faults(cfg, uncompiled),
        *token_faults(cfg, loading.text_config(outline)),
    ]


def loss_faults(cfg: Config, model_config: Any) -> list[str]:
    """End-to-end losses on a model that predicts no next token."""
    if cfg.loss_fn == LossFn.fvu or loading.predicts_next_token(model_config):
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


def compile_faults(cfg: Config, uncompiled: Obstacle | None) -> list[str]:
    """A compilation that is asked for and cannot be."""
    if not cfg.compile_model or uncompiled is None:
        return []
    return [f"compile_model=True: {uncompiled.reason}; {', or '.join(filter(None, [uncompiled.fix, 'leave it out']))}"]


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
