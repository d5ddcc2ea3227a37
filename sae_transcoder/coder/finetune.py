"""Coders to start from: a run's directory, folders in sparsify's format, or a hub id."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError

from sae_transcoder.coder.names import hookpoint_of
from sae_transcoder.coder.stored_coders import (
    WEIGHTS,
    coder_settings,
    coders_dir,
    expected_shapes,
    find_coders,
    tensor_faults,
    threshold_faults,
)
from sae_transcoder.config import Activation, Config, ConfigError, ModelType
from sae_transcoder.process.tensor_headers import tensor_headers
from sae_transcoder.run_store.checked_files import DamagedFile


def start_coders(cfg: Config, coders: Iterable[str], widths: Mapping[str, int], latents: Mapping[str, int]) -> dict[str, Path]:
    """{coder: the folder of the cfg.json and sae.safetensors to start from}; empty where `finetune` is not set.

    widths, latents: {hookpoint: d}, {hookpoint: number of latents}. Raises ConfigError for coders that are missing or of another shape.
    """
    if cfg.finetune is None:
        return {}
    stored = find_coders(coders_dir(cfg.finetune, "finetune"))
    folders, faults = {}, []
    for name in coders:
        if name not in stored:
            have = ", ".join(stored) or "none"
            faults.append(
                f"finetune={cfg.finetune}: no coder for {name} (it holds: {have}); choose hookpoints and init_seeds that it has"
            )
            continue
        hookpoint = hookpoint_of(name)
        faults += shape_faults(cfg, stored[name], name, widths[hookpoint], latents[hookpoint])
        folders[name] = stored[name]
    if faults:
        raise ConfigError(*faults)
    return folders


def shape_faults(cfg: Config, folder: Path, name: str, width: int, latents: int) -> list[str]:
    """How the coder stored in `folder` differs from the one to be trained."""
    try:
        settings = coder_settings(folder)
        headers = tensor_headers(folder / WEIGHTS)
        of_thresholds = threshold_faults(folder, settings, latents) if cfg.activation == Activation.jumprelu else []
    except DamagedFile as error:
        return [f"finetune={cfg.finetune}: {error}"]
    except (ValueError, OSError, SafetensorError) as error:
        return [f"finetune={cfg.finetune}: {folder} cannot be read ({error}); take the coder from another copy"]
    faults = [
        f"finetune={cfg.finetune}: {name} {fault}; set num_latents (or expansion_factor), skip_connection and the hookpoints as they were"
        for fault in tensor_faults(headers, expected_shapes(width, latents, skip=cfg.skip_connection))
    ]
    faults = faults or [f"finetune={cfg.finetune}: {name} {fault}; take the coder from another copy" for fault in of_thresholds]
    is_transcoder = cfg.model_type == ModelType.transcoder
    if settings["transcode"] != is_transcoder:
        other = "a transcoder" if settings["transcode"] else "an SAE"
        faults.append(f"finetune={cfg.finetune}: {name} is {other}, and model_type={cfg.model_type}; set model_type as it was")
    return faults
