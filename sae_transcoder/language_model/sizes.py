"""The sizes of a language model that the memory estimate needs, read from its outline."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from sae_transcoder.config import Config, ConfigError
from sae_transcoder.language_model import loading
from sae_transcoder.language_model.layers import layer_count, layer_stack
from sae_transcoder.language_model.model_class import base, has_head


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of a language model that the memory estimate needs."""

    weights: int  # bytes
    itemsize: int  # bytes of an activation
    vocabulary: int
    width: int  # of the hidden states
    widest: int  # the largest width inside a layer
    layers: int
    predicts: bool  # whether it is loaded with a head


def sizes_of(cfg: Config, outline: PreTrainedModel, dtype: torch.dtype) -> ModelSizes:
    """The sizes of the model, of whose layers those in `outline` are loaded."""
    text = loading.text_config(outline)
    try:
        inside: nn.Module = layer_stack(outline)[1]
    except ConfigError:
        inside = base(outline)
    matrices = [parameter.shape[-2:] for parameter in inside.parameters() if parameter.ndim > 1]
    return ModelSizes(
        weights=loading.weight_bytes(cfg, outline, dtype),
        itemsize=dtype.itemsize,
        vocabulary=text.vocab_size,
        width=text.hidden_size,
        widest=max(max(shape) for shape in matrices),
        layers=layer_count(outline) or 1,
        predicts=has_head(outline),
    )
