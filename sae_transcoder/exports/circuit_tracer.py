"""A transcoder on every layer's MLP as circuit-tracer reads it: `load_transcoder_set` of 0.5.0 and later."""

from pathlib import Path

import yaml
from safetensors.torch import save_file

from sae_transcoder.coder.names import seed_of
from sae_transcoder.config import ConfigError, ModelConfig, Site
from sae_transcoder.exports.source import Source, Write
from sae_transcoder.language_model import hookpoints, layers, loading


def writer(source: Source) -> Write:
    """What writes layer_<i>.safetensors for every layer of the language model, and config.yaml.

    Raises ConfigError for SAEs, several seeds, groupmax, transcoders on other modules than MLPs, and layers that have none.
    """
    if any(seed_of(name) for name in source.coders):
        raise ConfigError(f"{source.path}: several seeds; a set has one transcoder for each layer: train with one init_seed")
    faults = []
    for name, coder in source.coders.items():
        if not coder.cfg["transcode"]:
            faults.append(f"{name}: an SAE; circuit-tracer reads transcoders: train with model_type=transcoder")
        elif coder.cfg["activation"] != "topk":
            faults.append(f"{name}: activation={coder.cfg['activation']}: circuit-tracer has none such; train with activation=topk")
    if faults:
        raise ConfigError(*faults)
    by_layer = placed(source)

    def write(folder: Path) -> None:
        for number, name in by_layer.items():
            weights = source.coders[name].weights
            renamed = {
                "W_enc": weights["encoder.weight"],
                "b_enc": weights["encoder.bias"],
                "W_dec": weights["W_dec"],
                "b_dec": weights["b_dec"],
            }
            if "W_skip" in weights:
                renamed["W_skip"] = weights["W_skip"]
            save_file({key: value.contiguous() for key, value in renamed.items()}, folder / f"layer_{number}.safetensors")
        described = {
            "model_name": source.settings["model_name"],
            "revision": source.settings["revision"],
            "model_kind": "transcoder_set",
            "feature_input_hook": "mlp.hook_in",
            "feature_output_hook": "mlp.hook_out",
            # What later versions than 0.5.0 read; with 0.5.0 each transcoder's activation_function is to be set.
            "activation": "topk",
            "k": source.coders[by_layer[0]].cfg["k"],
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(described, sort_keys=False))

    return write


def placed(source: Source) -> dict[int, str]:
    """{layer: coder} for all layers of the language model. Raises ConfigError where one lacks, or a coder lies elsewhere."""
    model = ModelConfig(model_name=source.settings["model_name"], revision=source.settings["revision"])
    stack, modules = layers.layer_stack(loading.outline(model))
    found: dict[int, str] = {}
    elsewhere = []
    for name in source.coders:
        parts = name.removeprefix(f"{stack}.").split(".")
        if name.startswith(f"{stack}.") and len(parts) == 2 and parts[0].isdigit() and parts[1] in hookpoints.SITE_NAMES[Site.mlp]:
            found[int(parts[0])] = name
        else:
            elsewhere.append(name)
    if elsewhere:
        raise ConfigError(f"{source.path}: {', '.join(elsewhere)}: no MLP of a layer; train with site=mlp")
    if lacking := sorted(set(range(len(modules))) - set(found)):
        shown = ", ".join(map(str, lacking))
        raise ConfigError(
            f"{source.path}: no transcoder for layers {shown} of {len(modules)}; train with layers=null, which is every layer"
        )
    return dict(sorted(found.items()))
