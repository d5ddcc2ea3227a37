"""The language model: its outline without weights, the modules that a config means, and the forward up to the last of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from natsort import natsorted
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from sae_transcoder.config import Config, ConfigError, ModelConfig, ModelType, Site, site

DEMO = Path(__file__).parent / "demo" / "model"

# Names that model families give to the parts of a layer, in the order of preference.
SITE_NAMES = {
    Site.mlp: ("mlp", "ffn", "feed_forward", "block_sparse_moe"),
    Site.attention: ("self_attn", "attn", "attention", "self_attention"),
}


@dataclass(frozen=True)
class Activations:
    """A module's input and output at the positions of a batch, each [batch, position, d]."""

    input: Tensor
    output: Tensor


def model_path(cfg: ModelConfig) -> str:
    """What transformers is asked for: the bundled model's folder for `demo`, else the name as it is."""
    return str(DEMO) if cfg.model_name == "demo" else cfg.model_name


def _cannot_load(cfg: ModelConfig, what: str, error: Exception) -> ConfigError:
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    where = f"model_name={cfg.model_name}" + (f", revision={cfg.revision}" if cfg.revision else "")
    if "gated" in str(error).lower() or "401" in str(error):
        fix = "accept the model's licence on its hub page and run `hf auth login`"
    else:
        fix = "check the name, the network (or that it is cached, with HF_HUB_OFFLINE=1), or give a local path; model=demo needs neither"
    return ConfigError(f"{where}: its {what} cannot be loaded ({reason}); {fix}")


def outline(cfg: ModelConfig) -> PreTrainedModel:
    """The model without its weights: its parameters have shapes and no memory.

    Raises ConfigError where the model's config cannot be had or describes no text model.
    """
    try:
        model_config = AutoConfig.from_pretrained(model_path(cfg), revision=cfg.revision)
        with FakeTensorMode():
            # Shapes do not depend on the number format; the kernels of mixtures of experts exist in bfloat16 only.
            model = AutoModel.from_config(model_config, dtype=torch.bfloat16)
    except (OSError, ValueError, KeyError) as error:
        raise _cannot_load(cfg, "config", error) from error
    return model.eval()


def tokenizer(cfg: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises ConfigError where there is none to be had."""
    try:
        return AutoTokenizer.from_pretrained(model_path(cfg), revision=cfg.revision)
    except (OSError, ValueError, KeyError) as error:
        raise _cannot_load(cfg, "tokenizer", error) from error


def load(cfg: Config, device: torch.device) -> PreTrainedModel:
    """The model with its weights, frozen, in eval mode. Raises ConfigError where they cannot be had."""
    dtype = resolve_dtype(cfg, device)
    transformers_logging.disable_progress_bar()
    try:
        model = AutoModel.from_pretrained(model_path(cfg), revision=cfg.revision, dtype=dtype)
    except (OSError, ValueError) as error:
        raise _cannot_load(cfg, "weights", error) from error
    return model.to(device).eval().requires_grad_(False)


def resolve_dtype(cfg: ModelConfig, device: torch.device) -> torch.dtype:
    """The weights' number format: as set, else bfloat16 on a GPU that has it, else float32."""
    if cfg.dtype is not None:
        return getattr(torch, cfg.dtype)
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def matches(pattern: Sequence[str], name: Sequence[str]) -> bool:
    """Whether the parts of a dotted name fit the parts of a pattern; `**` stands for any number of parts, also none."""
    if not pattern:
        return not name
    if pattern[0] == "**":
        return any(matches(pattern[1:], name[i:]) for i in range(len(name) + 1))
    return bool(name) and fnmatchcase(name[0], pattern[0]) and matches(pattern[1:], name[1:])


def layer_list(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
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


def hookpoints(cfg: Config, model: PreTrainedModel) -> list[str]:
    """The names of the modules that `layers`, `layer_stride`, `site` or `hookpoints` mean, in natural order.

    Raises ConfigError for layers out of range, a site that the layers lack, and patterns that match nothing.
    """
    if cfg.hookpoints is not None:
        names = [name for name, _ in model.named_modules() if name]
        split = {name: name.split(".") for name in names}
        lost, found = [], set()
        for pattern in cfg.hookpoints:
            hits = {name for name, parts in split.items() if matches(pattern.split("."), parts)}
            found |= hits
            if not hits:
                lost.append(
                    f"hookpoints={cfg.hookpoints}: {pattern} matches no module; {type(model).__name__} has {shape_of_names(names)}"
                )
        if lost:
            raise ConfigError(*lost)
        return natsorted(found)[:: cfg.layer_stride]
    stack, modules = layer_list(model)
    layers = cfg.layers if cfg.layers is not None else list(range(0, len(modules), cfg.layer_stride))
    beyond = [i for i in layers if i >= len(modules)]
    if beyond:
        raise ConfigError(f"layers={cfg.layers}: {cfg.model_name} has layers 0 to {len(modules) - 1}; leave out {beyond}")
    wanted = site(cfg)
    if wanted == Site.residual:
        return [f"{stack}.{i}" for i in sorted(layers)]
    points = []
    for i in sorted(layers):
        part = next((n for n in SITE_NAMES[wanted] if hasattr(modules[i], n)), None)
        if part is None:
            chosen = f"site={cfg.site}" if cfg.site else f"site=null, which is {wanted} for model_type={cfg.model_type}"
            raise ConfigError(
                f"{chosen}: layer {i} of {cfg.model_name} has no such module (it has {children(modules[i])}); set site or hookpoints"
            )
        points.append(f"{stack}.{i}.{part}")
    return points


def shape_of_names(names: Iterable[str]) -> str:
    """The module names with every number written as `*`, each once, so that a deep model's names fit a message."""
    shapes = dict.fromkeys(".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names)
    return ", ".join(shapes)


class _Reached(Exception):
    """The last hookpoint has been computed; nothing later in the model is needed."""


def _first_tensor(values: Any) -> Tensor | None:
    """The hidden states among a module's arguments or results, which may be a tensor, a tuple or named."""
    if isinstance(values, Tensor):
        return values
    candidates = values.values() if isinstance(values, dict) else values if isinstance(values, list | tuple) else ()
    return next((v for v in candidates if isinstance(v, Tensor)), None)


@torch.no_grad()
def capture(model: PreTrainedModel, points: Sequence[str], tokens: Tensor) -> dict[str, Activations]:
    """Inputs and outputs of the modules `points` for `tokens` [batch, position], in the model's dtype.

    The forward stops once each has been seen; a module that the forward does not call is missing from the result.
    """
    seen: dict[str, Activations] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict, result: Any) -> None:
            output = _first_tensor(result)
            given = _first_tensor(args)
            if given is None:
                given = kwargs.get("hidden_states", _first_tensor(kwargs))
            if output is not None and given is not None:
                seen[name] = Activations(given, output)
            if len(seen) == len(points):
                raise _Reached

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name), with_kwargs=True) for name in points]
    try:
        model(input_ids=tokens, use_cache=False)
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return seen


def widths(cfg: Config, model: PreTrainedModel, points: Sequence[str]) -> dict[str, int]:
    """The width d of each hookpoint, from a forward of the outline: no weights, no arithmetic.

    Raises ConfigError for modules that the forward does not call, whose output is not [batch, position, d], and
    for a transcoder on a module whose input is not as wide as its output.
    """
    with next(model.parameters()).fake_mode:  # type: ignore[attr-defined]
        seen = capture(model, points, torch.ones(2, 8, dtype=torch.long))
    faults, found = [], {}
    for name in points:
        chosen = f"hookpoints={cfg.hookpoints}" if cfg.hookpoints is not None else f"layers={cfg.layers}, site={site(cfg)}"
        if name not in seen:
            faults.append(f"{chosen}: the module {name} is not called with hidden states in a forward; choose another")
            continue
        given, output = seen[name].input.shape, seen[name].output.shape
        if output[:2] != (2, 8) or len(output) != 3:
            faults.append(f"{chosen}: the output of {name} has the shape {list(output)} for 2 sequences of 8 tokens, not [2, 8, d]")
        elif cfg.model_type == ModelType.transcoder and given[-1] != output[-1]:
            faults.append(
                f"{chosen} with model_type=transcoder: {name} maps width {given[-1]} to {output[-1]}, and a transcoder needs equal ones; "
                "choose a module such as the whole MLP, or model_type=sae"
            )
        found[name] = output[-1]
    if faults:
        raise ConfigError(*faults)
    return found
