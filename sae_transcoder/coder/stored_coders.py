"""Coders on disk in sparsify's format: in a run's directory, in any folder, or on the hub."""

from pathlib import Path
from typing import Any

from natsort import natsorted

from sae_transcoder.coder.names import coder_name
from sae_transcoder.config import WITH_THRESHOLD, ConfigError
from sae_transcoder.config.paths import instead, is_path, label, local_path
from sae_transcoder.process.tensor_headers import tensor_headers
from sae_transcoder.run_store import run_files
from sae_transcoder.run_store.checked_files import DamagedFile, damaged, is_integer, read_object

WEIGHTS = "sae.safetensors"  # a coder's file of tensors
THRESHOLDS = "threshold.safetensors"  # above which latents fire, where that is not by top-k or groupmax (trained_coder.py)


def coders_dir(text: str, name: str = "") -> Path:
    """The folder that holds one folder per hookpoint: PATH/coders of a run, PATH itself, or a copy of a hub repository.

    name: the field that gave the text, for messages. Raises ConfigError where there is no such folder or repository.
    """
    path, setting = local_path(text, name), label(text, name)
    if not text or not path.is_dir():
        if text.count("/") != 1 or is_path(text) or path.parent.is_dir():
            raise ConfigError(
                f"{setting}: no such folder; give a run's directory, a folder of sparsify coders, or a hub id{instead(path)}"
            )
        from huggingface_hub import snapshot_download

        try:
            path = Path(snapshot_download(text))
        except Exception as error:  # of many kinds: not found, offline, gated
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ConfigError(
                f"{setting}: neither a folder nor to be had from the hub ({reason}); check the name, the network or HF_HUB_OFFLINE"
            ) from error
    return path / "coders" if (path / "coders").is_dir() else path


def run_dir_of(coders: Path) -> Path | None:
    """The directory of the run whose coders lie in this folder; None where no run's settings lie in it or above it."""
    return next((p for p in (coders, *coders.parents[:3]) if (p / run_files.CONFIG).is_file()), None)


def find_coders(root: Path) -> dict[str, Path]:
    """{coder: the folder of its cfg.json and sae.safetensors} below `root`, in natural order."""
    folders = [p.parent for pattern in ("*/cfg.json", "seed*/*/cfg.json") for p in root.glob(pattern)]
    by_name = {coder_name(p.relative_to(root)): p for p in folders if (p / WEIGHTS).is_file()}
    return {name: by_name[name] for name in natsorted(by_name)}


def expected_shapes(width: int, num_latents: int, *, skip: bool) -> dict[str, list[int]]:
    """{tensor: shape} of sparsify's coder."""
    shapes = {
        "encoder.weight": [num_latents, width],
        "encoder.bias": [num_latents],
        "W_dec": [num_latents, width],
        "b_dec": [width],
    }
    return shapes | ({"W_skip": [width, width]} if skip else {})


def tensor_faults(headers: dict[str, tuple[list[int], str]], expected: dict[str, list[int]]) -> list[str]:
    """How a stored coder's tensors differ from those expected: missing, extra, of another shape, or no floating-point numbers."""
    faults = [f"lacks {name} of shape {expected[name]}" for name in expected.keys() - headers.keys()]
    faults += [f"has a tensor {name} that such a coder does not have" for name in headers.keys() - expected.keys()]
    for name in expected.keys() & headers.keys():
        shape, number_format = headers[name]
        if shape != expected[name]:
            faults.append(f"has {name} of shape {shape}, not {expected[name]}")
        if not number_format.startswith(("F", "BF")):
            faults.append(f"has {name} in {number_format}, no floating-point numbers")
    return sorted(faults)


# {name in a coder's cfg.json: its type}, and what stands for those that older versions of sparsify do not write.
SETTING_TYPES: dict[str, type] = {
    "d_in": int, "k": int, "num_latents": int, "expansion_factor": int,
    "activation": str, "transcode": bool, "skip_connection": bool, "multi_topk": bool,
    "trained_activation": str, "matryoshka_widths": list,
}  # fmt: skip
SPARSIFY_DEFAULTS = {"activation": "topk", "transcode": False, "skip_connection": False, "num_latents": 0}


def coder_settings(folder: Path) -> dict[str, Any]:
    """A coder's cfg.json, each setting of its type. Raises DamagedFile."""
    path, fix = folder / "cfg.json", "take the coder from another copy"
    if (written := read_object(path, fix)) is None:
        raise damaged(path, "it is not there", fix)
    settings = SPARSIFY_DEFAULTS | written
    sizes = ["d_in", "k", *([] if settings["num_latents"] else ["expansion_factor"])]
    if missing := [name for name in sizes if name not in settings]:
        raise damaged(path, f"lacks {', '.join(missing)}", fix)
    if wrong := [name for name, kind in SETTING_TYPES.items() if name in settings and type(settings[name]) is not kind]:
        raise damaged(path, ", ".join(f"{name} is {settings[name]!r}" for name in wrong), fix)
    return settings


def num_latents(settings: dict[str, Any]) -> int:
    """How many latents the coder of these settings has."""
    return settings["num_latents"] or settings["d_in"] * settings["expansion_factor"]


def threshold_faults(folder: Path, cfg: dict[str, Any], num_latents: int) -> list[str]:
    """What is wrong with a stored coder's thresholds, which must be there where its cfg.json says that latents fire above them."""
    path, activation = folder / THRESHOLDS, cfg.get("trained_activation")
    if activation not in (None, *WITH_THRESHOLD):
        return [f"trained_activation is {activation!r}, not batchtopk or jumprelu"]
    if not path.is_file():
        return [] if activation is None else [f"lacks {THRESHOLDS}, and is a {activation} coder"]
    headers = tensor_headers(path)
    shared = headers.get("threshold", ([], ""))[0] == [1]
    faults = tensor_faults(headers, {"threshold": [1 if shared else num_latents]})
    return [f"{THRESHOLDS} {fault}" for fault in faults or threshold_value_faults(path)]


def threshold_value_faults(path: Path) -> list[str]:
    """What is wrong with the numbers in a file of thresholds."""
    from safetensors.torch import load_file  # here, since a coder without thresholds is read without torch

    threshold = load_file(path)["threshold"]
    return [] if bool((threshold.isfinite() & (threshold >= 0)).all()) else ["has thresholds that are negative or not finite"]


def width_faults(cfg: dict[str, Any], num_latents: int) -> list[str]:
    """What is wrong with the widths of a Matryoshka coder's nested dictionaries, which rise to all latents."""
    widths = cfg.get("matryoshka_widths")
    if widths is None or (widths == sorted({w for w in widths if is_integer(w) and w > 0}) and widths[-1:] == [num_latents]):
        return []
    return [f"matryoshka_widths is {widths}, not numbers that rise to its {num_latents} latents"]


def coder_faults(folder: Path) -> list[str]:
    """What is wrong with a stored coder by itself, told from its cfg.json and the header of its tensors."""
    try:
        cfg = coder_settings(folder)
        width = cfg["d_in"]
        count = num_latents(cfg)
        faults = tensor_faults(tensor_headers(folder / WEIGHTS), expected_shapes(width, count, skip=cfg["skip_connection"]))
        faults += threshold_faults(folder, cfg, count) + width_faults(cfg, count)
    except DamagedFile as error:
        return list(error.faults)
    except Exception as error:  # safetensors raises many kinds for damaged files
        faults = [str(error).splitlines()[0] if str(error) else type(error).__name__]
    return [f"{folder}: cannot be read ({fault})" for fault in faults]
