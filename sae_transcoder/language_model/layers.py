"""The language model's stack of layers: where it is, how many of them a run needs, their compilation."""

import logging
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from sae_transcoder.config import Config, ConfigError, LossFn
from sae_transcoder.language_model import compilation, loading
from sae_transcoder.language_model.compilation import Obstacle

log = logging.getLogger(__name__)


def stack(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The name and the modules of the model's stack of layers.

    Raises ConfigError where no list of modules has as many members as the model has layers.
    """
    text = loading.text_config(model)
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
        shorter = loading.outline(cfg, count)
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


def uncompiled(
    cfg: Config, model: PreTrainedModel, points: Collection[str], count: int | None, device: torch.device, *, here: bool = True
) -> Obstacle | None:
    """Why the model's layers, of which the first `count` are loaded (None: all), are not compiled; None: they are.

    model: with or without weights; points: the hookpoints; device: where it computes, `here` or on another machine.
    """
    if cfg.compile_model is False:
        return Obstacle("compile_model=false")
    if cfg.compile_model is None and (reason := unwanted(cfg, model, device)):
        return reason
    try:
        free = outside(model, points, count)
    except ConfigError:
        return Obstacle(f"the layers of {cfg.model_name} were not found")
    if not free:
        return Obstacle("a hookpoint lies inside each of its layers")
    return compilation.machine_obstacle(device) if here else None


def unwanted(cfg: Config, model: PreTrainedModel, device: torch.device) -> Obstacle | None:
    """Why compile_model=null does not compile what could be; None: it does."""
    if device.type != "cuda":
        return Obstacle("the model is on a CPU", ASKED)
    if cfg.deterministic:  # which layers are compiled, and so round otherwise, depends on the hookpoints of all runs of a pack
        return Obstacle("deterministic=true: a compiled layer rounds otherwise", ASKED)
    if cfg.quantization is not None or getattr(model.config, "quantization_config", None) is not None:
        return Obstacle("its weights are quantized", ASKED)
    if error := compilation.failure(cfg):
        return Obstacle(f"torch.compile failed before: {error}")
    return None


ASKED = "compile_model=true compiles it"


def outside(model: PreTrainedModel, points: Collection[str], count: int | None = None) -> list[nn.Module]:
    """The first `count` layers (None: all) inside which none of the hookpoints lies. Raises ConfigError where layers are not found."""
    name, layers = stack(model.base_model)  # type: ignore[arg-type]
    return [layer for i, layer in enumerate(list(layers)[:count]) if not any(point.startswith(f"{name}.{i}.") for point in points)]


def compiled(model: PreTrainedModel, points: Collection[str], excuse: Callable[[Exception], None] | None = None) -> PreTrainedModel:
    """The model, with every layer's forward compiled (torch.compile) in which none of the hookpoints lies; those are as they were.

    The layers are compiled and not the model, since the forward stops at the last hookpoint. excuse: as in compile_forwards.
    """
    compilation.compile_forwards(outside(model, points), excuse)
    return model


def load(cfg: Config, device: torch.device, count: int | None, points: Collection[str]) -> PreTrainedModel:
    """The language model as coders on these hookpoints need it: of its layers the first `count`, None: all; compiled where `uncompiled` finds
    nothing against it, with compile_model=null until that fails.

    Raises ConfigError as language_model.load does.
    """
    model = loading.load(cfg, device, count)
    if why := uncompiled(cfg, model, points, None, device):
        # The hookpoints of a pack may lie inside more layers than those of any of its runs.
        log.log(logging.WARNING if cfg.compile_model else logging.INFO, "%s: its layers are not compiled: %s", cfg.model_name, why)
        return model

    def excuse(error: Exception) -> None:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        compilation.FAILED[cfg.model_name, cfg.revision] = said[:SHOWN]
        log.info("torch.compile failed", exc_info=error)
        log.warning(
            "%s goes on uncompiled, torch.compile failed (compile_model=false does not try it): %s", cfg.model_name, said[:SHOWN]
        )

    log.info("%s: %d of its layers are compiled", cfg.model_name, len(outside(model, points)))
    return compiled(model, points, excuse if cfg.compile_model is None else None)


SHOWN = 300  # characters of an error that torch.compile gives, which can be pages
