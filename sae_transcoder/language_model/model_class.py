"""Which of transformers' classes the language model is: with a language-modelling head, or without one.

The classes of a family can differ in more than the head: where a model of text and images predicts text alone, its class with a head holds the
layers for text and no others.
"""

from importlib.metadata import version
from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedModel,
)

from sae_transcoder.config import Config, ConfigError, computes_logits


def auto_class(cfg: Config, model_config: Any) -> type[AutoModel] | type[AutoModelForCausalLM]:
    """The class that makes the run's model from this config: with a head where the run needs one, or where there is none without.

    Raises ConfigError where there is neither.
    """
    headless = type(model_config) in MODEL_MAPPING or "AutoModel" in own_classes(model_config)
    if not headless and not predicts_next_token(model_config):
        kind = f"{version('transformers')} has no language model of model_type={model_config.model_type}"
        raise ConfigError(f"model_name={cfg.model_name}: transformers {kind}; choose another model")
    return (
        AutoModelForCausalLM if needs_head(cfg, model_config) or (predicts_next_token(model_config) and not headless) else AutoModel
    )


def own_classes(model_config: Any) -> dict[str, str]:
    """{transformers' auto class: the class in the model's own code that takes its place}."""
    return getattr(model_config, "auto_map", None) or {}


def needs_head(cfg: Config, model_config: Any) -> bool:
    """Whether the run or its evaluation computes logits, and the model can compute them."""
    return predicts_next_token(model_config) and computes_logits(cfg)


def predicts_next_token(model_config: Any) -> bool:
    """Whether models of this config have a causal language-modelling head."""
    # BERT and its like can be made decoders, and are listed among the causal models.
    masked = type(model_config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(model_config, "is_decoder", False)
    causal = type(model_config) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in own_classes(model_config)
    return causal and not masked


def has_head(model: PreTrainedModel) -> bool:
    """Whether the model has a language-modelling head."""
    return model.base_model is not model or model.get_output_embeddings() is not None


def base(model: PreTrainedModel) -> PreTrainedModel:
    """The model without its head, below which modules have the names that hookpoints are called by."""
    if model.base_model is not model or not has_head(model):
        return model.base_model  # type: ignore[return-value]
    # Some classes, such as Llama4ForCausalLM, name their base wrongly, which makes them their own.
    parts = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    return parts[0] if len(parts) == 1 else model


def base_name(model: PreTrainedModel) -> str:
    """The name of the model's base below the model, with a dot at its end; empty for the model itself."""
    below = base(model)
    return next((f"{name}." for name, module in model.named_modules() if module is below and name), "")
