"""Coders to start from: a run's directory, folders in sparsify's format, or a hub id."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from sae_transcoder import coder_names
from sae_transcoder.config import Config, ConfigError, ModelType


def find(cfg: Config, coders: Iterable[str], widths: Mapping[str, int], latents: Mapping[str, int]) -> dict[str, Path]:
    """{coder: the folder of its cfg.json and sae.safetensors}; empty where `finetune` is not set.

    widths, latents: {hookpoint: d}, {hookpoint: number of latents}. Raises ConfigError for what is missing or of another shape.
    """
    if cfg.finetune is None:
        return {}
    root = folder(cfg.finetune)
    found, faults = {}, []
    for name in coders:
        point = coder_names.hookpoint(name)
        place = root / coder_names.folder(name)
        if not (place / "cfg.json").is_file() or not (place / "sae.safetensors").is_file():
            there = ", ".join(sorted(str(p.parent.relative_to(root)) for p in root.rglob("cfg.json"))) or "none"
            faults.append(
                f"finetune={cfg.finetune}: no coder for {name} (it holds: {there}); choose hookpoints and init_seeds that it has"
            )
            continue
        faults += shape_faults(cfg, place, name, widths[point], latents[point])
        found[name] = place
    if faults:
        raise ConfigError(*faults)
    return found


def folder(name: str) -> Path:
    """The folder that holds one folder per hookpoint. Raises ConfigError where there is none."""
    path = Path(name).expanduser()
    if not name or not path.is_dir():
        if not name or path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1 or path.exists():
            raise ConfigError(f"finetune={name}: no such folder; give a run's directory, a folder of sparsify coders, or a hub id")
        try:
            path = Path(snapshot_download(name))
        except Exception as error:  # of many kinds: not found, offline, gated
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ConfigError(
                f"finetune={name}: neither a folder nor to be had from the hub ({reason}); check the name, the network or HF_HUB_OFFLINE"
            ) from error
    return path / "coders" if (path / "coders").is_dir() else path


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
