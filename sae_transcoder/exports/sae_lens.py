"""Exports coders for SAELens: `sae_lens.SAE.load_from_disk(FOLDER)`, one folder per coder (tried with 6.54.12)."""

import json
import logging
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from sae_transcoder.coder.names import coder_dir, hookpoint_of
from sae_transcoder.config import ConfigError
from sae_transcoder.config.paths import expanded
from sae_transcoder.exports.source import Source, StoredCoder
from sae_transcoder.exports.targets import WriteFiles
from sae_transcoder.language_model import layers, loading
from sae_transcoder.language_model.transformer_lens_names import MODEL_NAMES, Hooks, hooks

log = logging.getLogger(__name__)

FORMAT = "6.54.12"  # the version of SAELens whose files these are; from a file without one it reads no metadata


def writer(source: Source) -> WriteFiles:
    """Returns the function that writes FOLDER/<coder>/cfg.json and sae_weights.safetensors.

    Raises ConfigError for groupmax, and for skip connections of top-k coders, which SAELens has no architecture for.
    """
    faults = []
    for name, coder in source.coders.items():
        if coder.threshold is not None:
            continue
        if coder.activation != "topk":
            fix = "train with activation=topk, batchtopk or jumprelu"
            faults.append(f"{name}: activation={coder.activation}: SAELens has none such; {fix}")
        if coder.cfg["skip_connection"]:
            fix = f"train with activation=batchtopk or jumprelu, or export to {'circuit_tracer or hub' if coder.cfg['transcode'] else 'hub'}"
            faults.append(f"{name}: skip_connection=True with activation={coder.activation}: SAELens has no such coder; {fix}")
    if faults:
        raise ConfigError(*faults)

    hooks_of, prepend_bos = find_hooks(source), begins_with_bos(source)

    def write_files(out_dir: Path) -> None:
        for name, coder in source.coders.items():
            own_dir = out_dir / coder_dir(name)
            own_dir.mkdir(parents=True)
            tensors = {key: value.contiguous() for key, value in sae_lens_tensors(coder).items()}
            save_file(tensors, own_dir / "sae_weights.safetensors")
            config = sae_lens_config(source, name, coder, hooks_of.get(name), prepend_bos=prepend_bos)
            (own_dir / "cfg.json").write_text(json.dumps(config, indent=2) + "\n")

    return write_files


def find_hooks(source: Source) -> dict[str, Hooks]:
    """{coder: TransformerLens's names of where it reads and writes}. Says which coders have none there, and why."""
    try:
        model = loading.outline(source.config)
        stack, _ = layers.layer_stack(model)
    except ConfigError as error:
        log.warning("metadata.hook_name is left out: %s", "; ".join(error.faults))
        return {}
    family, found = model.config.model_type, {}
    for name, coder in source.coders.items():
        if place := hooks(family, stack, hookpoint_of(name), transcoder=coder.cfg["transcode"]):
            found[name] = place
    if missing := [name for name in source.coders if name not in found]:
        kind = "the input or output of such modules" if source.settings["model_type"] == "transcoder" else "such modules"
        log.warning(
            "%s: metadata.hook_name is left out: TransformerLens has no name for %s in %s", ", ".join(missing), kind, family
        )
    return found


def begins_with_bos(source: Source) -> bool:
    """Whether SAELens's prepend_bos makes the sequences that were trained on: one begin token, the tokenizer's, before each. Says it where
    they begin otherwise."""
    if not source.begin:
        return False
    try:
        bos = loading.tokenizer(source.config).bos_token_id
    except ConfigError as error:
        log.warning("metadata.prepend_bos is false: the begin token is not known: %s", "; ".join(error.faults))
        return False
    if source.begin != [bos]:
        ids = ", ".join(map(str, source.begin))
        log.warning(
            "metadata.prepend_bos is false: each sequence began with %s, and SAELens puts the begin token %s alone", ids, bos
        )
        return False
    return True


def architecture(coder: StoredCoder) -> str:
    """SAELens's name of what computes the same as the coder.

    SAELens has no top-k transcoder: a top-k SAE that does not subtract b_dec from its input is one. Nor has it an SAE with a skip connection:
    a transcoder that predicts its own input is one.
    """
    if coder.threshold is None:
        return "topk"
    if coder.cfg["skip_connection"]:
        return "jumprelu_skip_transcoder"
    return "jumprelu_transcoder" if coder.cfg["transcode"] else "jumprelu"


def sae_lens_tensors(coder: StoredCoder) -> dict[str, Tensor]:
    """The coder's tensors under SAELens's names: W_enc [d, latent], W_dec [latent, d], b_enc and threshold [latent], b_dec [d], W_skip [d, d]."""
    weights = coder.weights
    b_enc = weights["encoder.bias"]
    if not coder.cfg["transcode"] and coder.cfg["skip_connection"]:
        # SAELens's transcoders subtract nothing from their input: what b_dec, subtracted, adds to each latent goes into b_enc.
        b_enc = (b_enc.double() - weights["encoder.weight"].double() @ weights["b_dec"].double()).to(b_enc.dtype)
    tensors = {"W_enc": weights["encoder.weight"].T, "b_enc": b_enc, "W_dec": weights["W_dec"], "b_dec": weights["b_dec"]}
    if coder.threshold is not None:
        tensors["threshold"] = coder.threshold
    if coder.cfg["skip_connection"]:
        tensors["W_skip"] = weights["W_skip"]
    return tensors


def sae_lens_config(source: Source, name: str, coder: StoredCoder, place: Hooks | None, *, prepend_bos: bool) -> dict[str, Any]:
    """One coder's config in SAELens's format. place: TransformerLens's names for where it reads and writes, None where it has none."""
    settings, kind = source.settings, architecture(coder)
    num_latents, width = coder.weights["W_dec"].shape
    metadata = {
        "sae_lens_version": FORMAT,
        # HookedTransformer loads it, and expands nothing.
        "model_name": MODEL_NAMES.get(settings["model_name"], expanded(settings["model_name"], "model_name")),
        "dataset_path": settings["dataset_name"],
        "context_size": settings["max_seq_length"],
        "prepend_bos": prepend_bos,
        "sae_transcoder_begin": source.begin,
        "sae_transcoder_train_on": settings["train_on"],
        "sae_transcoder_model_type": settings["model_type"],
        "sae_transcoder_module": hookpoint_of(name),
    }
    if place is not None:
        metadata["hook_name"] = place.input
        if coder.cfg["transcode"]:
            metadata["hook_name_out"] = place.output
    if coder.threshold is not None:
        metadata |= {"sae_transcoder_activation": coder.activation, "sae_transcoder_k": coder.cfg["k"]}
    if coder.matryoshka_widths is not None:
        metadata["sae_transcoder_matryoshka_widths"] = coder.matryoshka_widths
    return {
        "architecture": kind,
        "d_in": width,
        "d_sae": num_latents,
        **({"k": coder.cfg["k"], "rescale_acts_by_decoder_norm": False} if kind == "topk" else {}),
        **({"d_out": width} if "transcoder" in kind else {}),
        "apply_b_dec_to_input": not coder.cfg["transcode"] and "transcoder" not in kind,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "dtype": "float32",
        "device": "cpu",
        "metadata": metadata,
    }
