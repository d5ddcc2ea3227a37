"""The language model's stack of layers: where it is, how many of them a run needs, their compilation."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from sae_transcoder import language_model
from sae_transcoder.config import Config, ConfigError, LossFn


def stack(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The name and the modules of the model's stack of layers.

    Raises ConfigError where no list of modules has as many members as the model has layers.
    """
    count = getattr(model.config, "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise ConfigError(
        f"model {type(model).__name__}: its layers were not found; name modules with hookpoints (it has {children(model)})"
    )


def children(module: nn.Module) -> str:
    """The names of a module's direct parts, for messages."""
    return ", ".join(name for name, _ in module.named_children())


def needed(cfg: Config, outline: PreTrainedModel, points: Collection[str]) -> int | None:
    """How many of the first layers lead to all of the hookpoints, where nothing else of the model is ever computed; None: the whole model.

    None also where a model of so many layers would differ in them from the whole one.
    """
    if cfg.loss_fn != LossFn.fvu or cfg.eval_end_to_end:
        return None
    try:
        name, layers = stack(outline)
    except ConfigError:
        return None
    inside = [point.removeprefix(f"{name}.") for point in points if point.startswith(f"{name}.")]
    count = max((int(place.split(".")[0]) + 1 for place in inside), default=0)
    if len(inside) < len(points) or count in (0, len(layers)):
        return None
    shorter = stack(language_model.outline(cfg, count))[1]
    return count if all(alike(ours, theirs) for ours, theirs in zip(shorter, layers, strict=False)) else None


def alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules without weights are made of equal parts with equal settings."""

    def settings(module: nn.Module) -> dict[str, Any]:
        plain = {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float | str | tuple | None)}
        return plain | {name: parameter.shape for name, parameter in module.named_parameters(recurse=False)}

    parts, others = list(one.modules()), list(other.modules())
    return len(parts) == len(others) and all(
        type(a) is type(b) and settings(a) == settings(b) for a, b in zip(parts, others, strict=True)
    )


def compiled(model: PreTrainedModel, points: Sequence[str]) -> PreTrainedModel:
    """The model, with every layer's forward compiled (torch.compile) in which none of the hookpoints lies; those are as they were.

    The layers are compiled and not the model, since the forward stops at the last hookpoint.
    """
    name, layers = stack(model.base_model)  # type: ignore[arg-type]
    for i, layer in enumerate(layers):
        if not any(point.startswith(f"{name}.{i}.") for point in points):
            layer.forward = torch.compile(layer.forward)
    return model
