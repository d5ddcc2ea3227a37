"""The hookpoints that a config names, which are modules of the language model, and their widths."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from natsort import natsorted
from torch import nn
from transformers import PreTrainedModel

from sae_transcoder.config import Config, ConfigError, ModelType, Site, site
from sae_transcoder.language_model import layers
from sae_transcoder.language_model.model_class import base
from sae_transcoder.language_model.transformer_lens_names import FAMILIES, module_at
from sae_transcoder.language_model.trial import SEQUENCES, forward_shapes, trial_length

# The names of a layer's modules in different model families, in the order of preference.
SITE_NAMES = {
    Site.mlp: ("mlp", "ffn", "feed_forward", "block_sparse_moe"),
    Site.attention: ("self_attn", "attn", "attention", "self_attention"),
}


def is_match(pattern: Sequence[str], name: Sequence[str]) -> bool:
    """Whether the parts of a dotted name match the parts of a pattern, in which `**` stands for any number of parts, also none."""
    if not pattern:
        return not name
    if pattern[0] == "**":
        return any(is_match(pattern[1:], name[i:]) for i in range(len(name) + 1))
    return bool(name) and fnmatchcase(name[0], pattern[0]) and is_match(pattern[1:], name[1:])


def hookpoint_names(cfg: Config, model: PreTrainedModel) -> list[str]:
    """The names of the modules that `layers`, `layer_stride`, `site` or `hookpoints` choose, in natural order.

    Raises ConfigError for layers out of range, a site that the layers lack, and patterns that match nothing.
    """
    if cfg.hookpoints is not None:
        return matching_modules(cfg, model)
    if getattr(model.config, "is_encoder_decoder", False):
        stacks = (name for name, module in base(model).named_modules() if isinstance(module, nn.ModuleList) and module)
        raise ConfigError(
            f"layers={cfg.layers}: {cfg.model_name} has an encoder and a decoder, and layers do not say which; "
            f"set hookpoints instead, such as {name_patterns(f'{name}.0' for name in stacks if not any(map(str.isdigit, name.split('.'))))}"
        )
    stack, modules = layers.layer_stack(model)
    chosen = cfg.layers if cfg.layers is not None else list(range(0, len(modules), cfg.layer_stride))
    beyond = [i for i in chosen if i >= len(modules)]
    if beyond:
        raise ConfigError(f"layers={cfg.layers}: {cfg.model_name} has layers 0 to {len(modules) - 1}; leave out {beyond}")
    layer_site = site(cfg)
    if layer_site == Site.residual:
        return [f"{stack}.{i}" for i in sorted(chosen)]
    names = []
    for i in sorted(chosen):
        child = next((n for n in SITE_NAMES[layer_site] if hasattr(modules[i], n)), None)
        if child is None:
            setting = f"site={cfg.site}" if cfg.site else f"site=null, which is {layer_site} for model_type={cfg.model_type}"
            raise ConfigError(
                f"{setting}: layer {i} of {cfg.model_name} has no such module (it has {layers.child_names(modules[i])}); "
                "set site or hookpoints"
            )
        names.append(f"{stack}.{i}.{child}")
    return names


def matching_modules(cfg: Config, model: PreTrainedModel) -> list[str]:
    """Every `layer_stride`-th of the modules that match a pattern of `hookpoints`, in natural order."""
    names = [name for name, _ in base(model).named_modules() if name]
    faults, matching = [], set()
    for pattern in cfg.hookpoints or ():
        matches = {name for name in names if is_match(pattern.split("."), name.split("."))}
        matching |= matches
        if not matches:
            faults.append(no_match(cfg, pattern, names, model))
    if faults:
        raise ConfigError(*faults)
    return natsorted(matching)[:: cfg.layer_stride]


def no_match(cfg: Config, pattern: str, names: Sequence[str], model: PreTrainedModel) -> str:
    """The fault of a pattern that matches none of a model's modules: their name for it where it is TransformerLens's, or begins above the
    base model, as in model.layers.6; else all names."""
    family = model.config.model_type
    if pattern.startswith("blocks.") and family in FAMILIES:
        stack, is_transcoder = layers.layer_stack(model)[0], cfg.model_type == ModelType.transcoder
        if module := module_at(family, stack, pattern, transcoder=is_transcoder):
            layer = module.removeprefix(f"{stack}.")
            by_layers = f", or 'layers=[{layer}]' site=residual" if layer.isdigit() else ""
            return (
                f"hookpoints={cfg.hookpoints}: {pattern} is a name of TransformerLens; write 'hookpoints=[\"{module}\"]'{by_layers}"
            )
        return (
            f"hookpoints={cfg.hookpoints}: {pattern} is a name of TransformerLens for no module's output; "
            f"{type(model).__name__} has {name_patterns(names)}"
        )
    above, _, inside = pattern.partition(".")
    if inside and any(is_match(inside.split("."), name.split(".")) for name in names):
        return f"hookpoints={cfg.hookpoints}: {pattern} begins above the base model; leave out {above}, and write 'hookpoints=[\"{inside}\"]'"
    return f"hookpoints={cfg.hookpoints}: {pattern} matches no module; {type(model).__name__} has {name_patterns(names)}"


def name_patterns(names: Iterable[str]) -> str:
    """The different module names once each number is replaced by `*`, so that a deep model's names fit a message."""
    patterns = dict.fromkeys(".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names)
    return ", ".join(patterns)


def widths(cfg: Config, model: PreTrainedModel, hookpoints: Sequence[str]) -> dict[str, int]:
    """The width d of each hookpoint, from a forward of the model's outline, without weights and arithmetic.

    Raises ConfigError for a forward that fails, modules that it does not call, whose output is not [batch, position, d], and
    for a transcoder on a module whose input is not as wide as its output.
    """
    shapes, length = forward_shapes(cfg, model, hookpoints), trial_length(cfg, model)
    faults, width_of = [], {}
    setting = f"hookpoints={cfg.hookpoints}" if cfg.hookpoints is not None else f"layers={cfg.layers}, site={site(cfg)}"
    for name in hookpoints:
        if name not in shapes:
            faults.append(f"{setting}: the module {name} is not called with hidden states in a forward; choose another")
            continue
        input_shape, output_shape = shapes[name]
        if output_shape[:2] != (SEQUENCES, length) or len(output_shape) != 3:
            faults.append(
                f"{setting}: the output of {name} has the shape {list(output_shape)} for {SEQUENCES} sequences of {length} tokens, "
                f"not [{SEQUENCES}, {length}, d]; choose another module"
            )
        elif cfg.model_type == ModelType.transcoder and input_shape[-1] != output_shape[-1]:
            faults.append(
                f"{setting} with model_type=transcoder: {name} maps width {input_shape[-1]} to {output_shape[-1]}, and a transcoder needs "
                "equal ones; choose a module such as the whole MLP, or model_type=sae"
            )
        width_of[name] = output_shape[-1]
    if faults:
        raise ConfigError(*faults)
    return width_of
