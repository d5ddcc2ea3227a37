"""Coders to start from: a run's directory, folders in sparsify's format, or a hub id."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from sae_transcoder.coder import names as coder_names
from sae_transcoder.coder import stored as stored_coders
from sae_transcoder.config import Config, ConfigError, ModelType


def find(cfg: Config, coders: Iterable[str], widths: Mapping[str, int], latents: Mapping[str, int]) -> dict[str, Path]:
    """{coder: the folder of its cfg.json and sae.safetensors}; empty where `finetune` is not set.

    widths, latents: {hookpoint: d}, {hookpoint: number of latents}. Raises ConfigError for what is missing or of another shape.
    """
    if cfg.finetune is None:
        return {}
    there = stored_coders.find(stored_coders.folder(cfg.finetune, f"finetune={cfg.finetune}"))
    found, faults = {}, []
    for name in coders:
        if name not in there:
            have = ", ".join(there) or "none"
            faults.append(
                f"finetune={cfg.finetune}: no coder for {name} (it holds: {have}); choose hookpoints and init_seeds that it has"
            )
            continue
        point = coder_names.hookpoint(name)
        faults += shape_faults(cfg, there[name], name, widths[point], latents[point])
        found[name] = there[name]
    if faults:
        raise ConfigError(*faults)
    return found


def shape_faults(cfg: Config, place: Path, name: str, width: int, latents: int) -> list[str]:
    """How the coder kept in `place` differs from the one to be trained."""
    try:
        kept = json.loads((place / "cfg.json").read_text())
        with safe_open(place / "sae.safetensors", framework="pt") as file:
            shapes = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (ValueError, SafetensorError) as error:
        return [f"finetune={cfg.finetune}: {place} cannot be read ({error})"]
    expected = {"encoder.weight": [latents, width], "encoder.bias": [latents], "W_dec": [latents, width], "b_dec": [width]}
    if cfg.skip_connection:
        expected["W_skip"] = [width, width]
    faults = []
    for key in sorted(expected.keys() | shapes.keys()):
        if expected.get(key) != shapes.get(key):
            faults.append(
                f"finetune={cfg.finetune}: {name} has {key} of shape {shapes.get(key)}, the run's coder {expected.get(key)}; "
                "set num_latents (or expansion_factor), skip_connection and the hookpoints as they were"
            )
    transcode = cfg.model_type == ModelType.transcoder
    if kept.get("transcode", False) != transcode:
        other = "a transcoder" if kept["transcode"] else "an SAE"
        faults.append(f"finetune={cfg.finetune}: {name} is {other}, and model_type={cfg.model_type}; set model_type as it was")
    return faults
