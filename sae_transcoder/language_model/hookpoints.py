"""The modules of a language model that a config means, and how wide they are."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from natsort import natsorted
from transformers import PreTrainedModel

from sae_transcoder.config import Config, ConfigError, ModelType, Site, site
from sae_transcoder.language_model import layers
from sae_transcoder.language_model.forward import capture

# Names that model families give to the parts of a layer, in the order of preference.
SITE_NAMES = {
    Site.mlp: ("mlp", "ffn", "feed_forward", "block_sparse_moe"),
    Site.attention: ("self_attn", "attn", "attention", "self_attention"),
}


def matches(pattern: Sequence[str], name: Sequence[str]) -> bool:
    """Whether the parts of a dotted name fit the parts of a pattern; `**` stands for any number of parts, also none."""
    if not pattern:
        return not name
    if pattern[0] == "**":
        return any(matches(pattern[1:], name[i:]) for i in range(len(name) + 1))
    return bool(name) and fnmatchcase(name[0], pattern[0]) and matches(pattern[1:], name[1:])


def find(cfg: Config, model: PreTrainedModel) -> list[str]:
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
    stack, modules = layers.stack(model)
    chosen = cfg.layers if cfg.layers is not None else list(range(0, len(modules), cfg.layer_stride))
    beyond = [i for i in chosen if i >= len(modules)]
    if beyond:
        raise ConfigError(f"layers={cfg.layers}: {cfg.model_name} has layers 0 to {len(modules) - 1}; leave out {beyond}")
    wanted = site(cfg)
    if wanted == Site.residual:
        return [f"{stack}.{i}" for i in sorted(chosen)]
    points = []
    for i in sorted(chosen):
        part = next((n for n in SITE_NAMES[wanted] if hasattr(modules[i], n)), None)
        if part is None:
            asked = f"site={cfg.site}" if cfg.site else f"site=null, which is {wanted} for model_type={cfg.model_type}"
            raise ConfigError(
                f"{asked}: layer {i} of {cfg.model_name} has no such module (it has {layers.children(modules[i])}); set site or hookpoints"
            )
        points.append(f"{stack}.{i}.{part}")
    return points


def shape_of_names(names: Iterable[str]) -> str:
    """The module names with every number written as `*`, each once, so that a deep model's names fit a message."""
    shapes = dict.fromkeys(".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names)
    return ", ".join(shapes)


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
