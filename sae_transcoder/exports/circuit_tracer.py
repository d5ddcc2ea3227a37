"""Exports a transcoder on every layer's MLP for circuit-tracer: `load_transcoder_set` of 0.5.0 and later."""

from pathlib import Path

import yaml
from safetensors.torch import save_file

from sae_transcoder.coder.names import seed_of
from sae_transcoder.coder.stored_coders import run_dir_of
from sae_transcoder.config import ConfigError, Site
from sae_transcoder.config.paths import expanded
from sae_transcoder.exports.circuit_tracer_features import scan, scan_name, write_features
from sae_transcoder.exports.source import Source
from sae_transcoder.exports.stored_latents import read_latents
from sae_transcoder.exports.targets import WriteFiles
from sae_transcoder.language_model import hookpoints, layers, loading


def writer(source: Source, features: str = "false") -> WriteFiles:
    """Returns the function that writes layer_<i>.safetensors for every layer of the language model, and config.yaml.

    A transcoder with thresholds is written as a JumpReLU, which 0.5.0 reads from the file by itself (load_relu_transcoder).
    features="true": also what circuit-tracer's page shows of each latent, from latents/ of the run.
    Raises ConfigError for SAEs, several seeds, groupmax, transcoders on other modules than MLPs, layers without a transcoder, and for features
    without latents/.
    """
    if features not in ("true", "false"):
        raise ConfigError(f"features={features}: neither true nor false; write features=true")
    if any(seed_of(name) for name in source.coders):
        raise ConfigError(f"{source.path}: several seeds; a set has one transcoder for each layer: train with one init_seed")
    faults = []
    for name, coder in source.coders.items():
        if not coder.cfg["transcode"]:
            faults.append(f"{name}: an SAE; circuit-tracer reads transcoders: train with model_type=transcoder")
        elif coder.threshold is None and coder.activation != "topk":
            fix = "train with activation=topk, batchtopk or jumprelu"
            faults.append(f"{name}: activation={coder.activation}: circuit-tracer has none such; {fix}")
    if faults:
        raise ConfigError(*faults)
    by_layer = coders_by_layer(source)
    latents = read_latents(source) if features == "true" else None
    shown = scan_name(run_dir_of(source.path) or source.path)

    def write_files(out_dir: Path) -> None:
        for layer, name in by_layer.items():
            coder = source.coders[name]
            weights = coder.weights
            renamed = {
                "W_enc": weights["encoder.weight"],
                "b_enc": weights["encoder.bias"],
                "W_dec": weights["W_dec"],
                "b_dec": weights["b_dec"],
            }
            if "W_skip" in weights:
                renamed["W_skip"] = weights["W_skip"]
            if coder.threshold is not None:
                renamed["activation_function.threshold"] = coder.threshold
            save_file({key: value.contiguous() for key, value in renamed.items()}, out_dir / f"layer_{layer}.safetensors")
        first = source.coders[by_layer[0]]
        config = {
            "model_name": expanded(source.settings["model_name"], "model_name"),  # circuit-tracer loads it, and expands nothing
            "revision": source.settings["revision"],
            "model_kind": "transcoder_set",
            **({"scan": scan(shown)} if latents else {}),
            "feature_input_hook": "mlp.hook_in",
            "feature_output_hook": "mlp.hook_out",
            # Read by versions after 0.5.0, which itself takes what has no thresholds for ReLU: set each transcoder's activation_function.
            **({"activation": "topk", "k": first.cfg["k"]} if first.threshold is None else {"activation": "jumprelu"}),
            "sae_transcoder_begin": source.begin,  # ids at the start of each sequence that was trained on; read by no version
        }
        (out_dir / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        if latents:
            write_features(out_dir / "features" / shown, by_layer, latents)

    return write_files


def coders_by_layer(source: Source) -> dict[int, str]:
    """{layer: coder} for all layers of the language model.

    Raises ConfigError where a layer has no coder, and for coders on other modules than MLPs.
    """
    stack, modules = layers.layer_stack(loading.outline(source.config))
    by_layer: dict[int, str] = {}
    misplaced = []
    for name in source.coders:
        parts = name.removeprefix(f"{stack}.").split(".")
        if name.startswith(f"{stack}.") and len(parts) == 2 and parts[0].isdigit() and parts[1] in hookpoints.SITE_NAMES[Site.mlp]:
            by_layer[int(parts[0])] = name
        else:
            misplaced.append(name)
    if misplaced:
        raise ConfigError(f"{source.path}: {', '.join(misplaced)}: no MLP of a layer; train with site=mlp")
    if missing := sorted(set(range(len(modules))) - set(by_layer)):
        raise ConfigError(
            f"{source.path}: no transcoder for layers {', '.join(map(str, missing))} of {len(modules)}; "
            "train with layers=null, which is every layer"
        )
    return dict(sorted(by_layer.items()))
