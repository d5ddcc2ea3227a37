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
    text = language_model.text_config(model)
    count = getattr(text, "num_hidden_layers", None)
    parts = ((name, part) for name, part in model.named_modules() if isinstance(part, PreTrainedModel))
    inside, part = next(((n, p) for n, p in parts if type(p.config) is type(text)), ("", model))  # not a part that sees images
    for name, module in part.named_modules(prefix=inside):
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
    try:
        shorter = language_model.outline(cfg, count)
    except Exception:  # whatever a model says to a number of layers that it was not made for
        return None
    return count if is_part(shorter, outline) else None


def is_part(shorter: nn.Module, whole: nn.Module) -> bool:
    """Whether every part of a model without weights is in another one under the same name, with equal settings and shapes."""

    def settings(module: nn.Module) -> dict[str, Any]:
        plain = {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float | str | tuple | None)}
        return plain | {name: parameter.shape for name, parameter in module.named_parameters(recurse=False)}

    every = dict(whole.named_modules())
    return all(
        name in every and type(part) is type(every[name]) and settings(part) == settings(every[name])
        for name, part in shorter.named_modules()
    )


def load(cfg: Config, device: torch.device, count: int | None, points: Sequence[str]) -> PreTrainedModel:
    """The language model as coders on these hookpoints need it: of its layers the first `count`, None: all; compiled where that is asked for.

    Raises ConfigError as language_model.load does.
    """
    model = language_model.load(cfg, device, count)
    return compiled(model, points) if cfg.compile_model else model


def compiled(model: PreTrainedModel, points: Sequence[str]) -> PreTrainedModel:
    """The model, with every layer's forward compiled (torch.compile) in which none of the hookpoints lies; those are as they were.

    The layers are compiled and not the model, since the forward stops at the last hookpoint.
    """
    name, layers = stack(model.base_model)  # type: ignore[arg-type]
    for i, layer in enumerate(layers):
        if not any(point.startswith(f"{name}.{i}.") for point in points):
            layer.forward = torch.compile(layer.forward)
    return model
