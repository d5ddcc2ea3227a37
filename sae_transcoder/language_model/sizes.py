"""The sizes of a language model that the memory estimate needs, read from its outline."""

from collections.abc import Collection
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


@dataclass(frozen=True)
class ForwardSizes:
    """By how many weights each token is multiplied in a forward: up to the last hookpoint, through all layers, in the head; and the ids that the
    head predicts."""

    to_hookpoints: int
    whole: int
    head: int
    vocabulary: int


def forward_sizes(outline: PreTrainedModel, hookpoints: Collection[str]) -> ForwardSizes:
    """The weights of a model's outline that a forward passes; where its layers are not found, as if each hookpoint were in the last."""
    text = loading.text_config(outline)
    head = text.vocab_size * text.hidden_size if has_head(outline) else 0
    try:
        name, layers = layer_stack(outline)
    except ConfigError:
        weights = num_weights(base(outline))
        return ForwardSizes(weights, weights, head, text.vocab_size)
    by_layer = [num_weights(layer) for layer in layers]
    places = [point.removeprefix(f"{name}.").split(".")[0] for point in hookpoints if point.startswith(f"{name}.")]
    last = max(map(int, places)) if len(places) == len(hookpoints) else len(by_layer)
    return ForwardSizes(sum(by_layer[: last + 1]), sum(by_layer), head, text.vocab_size)


def num_weights(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


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
