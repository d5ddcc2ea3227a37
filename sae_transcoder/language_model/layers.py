"""The language model's stack of layers: which module it is, how many layers a run needs, which are compiled."""

import logging
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from sae_transcoder.config import Config, ConfigError, computes_logits
from sae_transcoder.language_model import compilation, loading
from sae_transcoder.language_model.compilation import CompileObstacle
from sae_transcoder.language_model.model_class import base

log = logging.getLogger(__name__)

SHOWN = 300  # characters of an error of torch.compile, which can be pages
COMPILE_FIX = "compile_model=true compiles it"


def layer_stack(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The name, below the model's base, and the modules of its stack of layers.

    Raises ConfigError where no list of modules has as many members as the model has layers.
    """
    text, below, num_layers = loading.text_config(model), base(model), layer_count(model)
    models = ((name, module) for name, module in below.named_modules() if isinstance(module, PreTrainedModel))
    # A model of text and images has a part for each.
    prefix, text_model = next(((name, m) for name, m in models if type(m.config) is type(text)), ("", below))
    parts = list(text_model.named_modules(prefix=prefix))
    others = tuple(f"{name}." for name, m in parts if isinstance(m, PreTrainedModel) and type(m.config) is not type(text))
    for name, module in parts:
        if isinstance(module, nn.ModuleList) and len(module) == num_layers and not name.startswith(others):
            return name, module
    raise ConfigError(
        f"model {type(model).__name__}: its layers were not found; name modules with hookpoints (it has {child_names(below)})"
    )


def layer_count(model: PreTrainedModel) -> int | None:
    """How many layers the model's config says it has; None where it does not say."""
    text = loading.text_config(model)
    # The decoder alone of a family that has an encoder too, whose layers are the ones that num_hidden_layers counts.
    names = ("decoder_layers", "num_hidden_layers") if getattr(text, "is_decoder", False) else ("num_hidden_layers",)
    return next((getattr(text, name) for name in names if getattr(text, name, None) is not None), None)


def child_names(module: nn.Module) -> str:
    """The names of a module's direct children, for messages."""
    return ", ".join(name for name, _ in module.named_children())


def num_layers_needed(cfg: Config, outline: PreTrainedModel, hookpoints: Collection[str]) -> int | None:
    """How many of the first layers have to be loaded to reach all of the hookpoints; None: the whole model.

    None where the run also computes logits, where a hookpoint lies outside the layers, and where a model of so many layers would not consist
    of the whole model's first layers.
    """
    if computes_logits(cfg):
        return None
    try:
        name, layers = layer_stack(outline)
    except ConfigError:
        return None
    inside = [hookpoint.removeprefix(f"{name}.") for hookpoint in hookpoints if hookpoint.startswith(f"{name}.")]
    count = max((int(path.split(".")[0]) + 1 for path in inside), default=0)
    if len(inside) < len(hookpoints) or count in (0, len(layers)):
        return None
    try:
        shorter = loading.outline(cfg, count)
    except Exception:  # any error of a model that was not made for so few layers
        return None
    return count if is_part_of(shorter, outline) else None


def is_part_of(shorter: nn.Module, whole: nn.Module) -> bool:
    """Whether every module of the shorter model is in the whole one under the same name, with equal settings and shapes."""

    def settings(module: nn.Module) -> dict[str, Any]:
        values = {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float | str | tuple | None)}
        return values | {name: parameter.shape for name, parameter in module.named_parameters(recurse=False)}

    modules = dict(whole.named_modules())
    return all(
        name in modules and type(module) is type(modules[name]) and settings(module) == settings(modules[name])
        for name, module in shorter.named_modules()
    )


def compile_obstacle(
    cfg: Config, model: PreTrainedModel, hookpoints: Collection[str], count: int | None, device: torch.device, *, here: bool = True
) -> CompileObstacle | None:
    """Why the model's layers are not compiled; None: they are.

    model: with or without weights; count: how many of its first layers are loaded, None for all; device: where it computes, on this machine
    (`here`) or another.
    """
    if cfg.compile_model is False:
        return CompileObstacle("compile_model=false")
    if cfg.compile_model is None and (obstacle := automatic_obstacle(cfg, model, device)):
        return obstacle
    try:
        compilable = layers_without_hookpoints(model, hookpoints, count)
    except ConfigError:
        return CompileObstacle(f"the layers of {cfg.model_name} were not found")
    if not compilable:
        return CompileObstacle("a hookpoint lies inside each of its layers")
    return compilation.machine_obstacle(device) if here else None


def automatic_obstacle(cfg: Config, model: PreTrainedModel, device: torch.device) -> CompileObstacle | None:
    """Why compile_model=null leaves the layers uncompiled; None: it compiles them."""
    if device.type != "cuda":
        return CompileObstacle("the model is on a CPU", COMPILE_FIX)
    if cfg.deterministic:  # compiled layers round otherwise, and the hookpoints of a whole pack decide which are compiled
        return CompileObstacle("deterministic=true: a compiled layer rounds otherwise", COMPILE_FIX)
    if cfg.quantization is not None or getattr(model.config, "quantization_config", None) is not None:
        return CompileObstacle("its weights are quantized", COMPILE_FIX)
    if error := compilation.failure(cfg):
        return CompileObstacle(f"torch.compile failed before: {error}")
    return None


def layers_without_hookpoints(model: PreTrainedModel, hookpoints: Collection[str], count: int | None = None) -> list[nn.Module]:
    """Those of the first `count` layers (None: all) that contain no hookpoint. Raises ConfigError where the layers are not found."""
    name, layers = layer_stack(model)
    return [layer for i, layer in enumerate(list(layers)[:count]) if not any(h.startswith(f"{name}.{i}.") for h in hookpoints)]


def compile_layers(
    model: PreTrainedModel, hookpoints: Collection[str], on_failure: Callable[[Exception], None] | None = None
) -> None:
    """Compiles the forward of every layer that contains no hookpoint (torch.compile).

    The layers are compiled and not the model, since the forward stops at the last hookpoint. on_failure: as in compile_forwards.
    """
    compilation.compile_forwards(layers_without_hookpoints(model, hookpoints), on_failure)


def load_for_hookpoints(cfg: Config, device: torch.device, count: int | None, hookpoints: Collection[str]) -> PreTrainedModel:
    """Loads the language model for coders on these hookpoints: its first `count` layers, None for all, compiled where possible.

    Where compiling fails, compile_model=null goes on without. Raises ConfigError as `loading.load` does.
    """
    model = loading.load(cfg, device, count)
    if obstacle := compile_obstacle(cfg, model, hookpoints, None, device):
        # The hookpoints of a pack may lie inside more layers than those of any of its runs.
        log.log(
            logging.WARNING if cfg.compile_model else logging.INFO, "%s: its layers are not compiled: %s", cfg.model_name, obstacle
        )
        return model

    def go_on_uncompiled(error: Exception) -> None:
        message = f"{type(error).__name__}: {' '.join(str(error).split())}"[:SHOWN]
        compilation.FAILURES[cfg.model_name, cfg.revision] = message
        log.info("torch.compile failed", exc_info=error)
        log.warning(
            "%s goes on uncompiled, torch.compile failed (compile_model=false does not try it): %s", cfg.model_name, message
        )

    log.info("%s: %d of its layers are compiled", cfg.model_name, len(layers_without_hookpoints(model, hookpoints)))
    compile_layers(model, hookpoints, go_on_uncompiled if cfg.compile_model is None else None)
    return model
