"""Coders on disk in sparsify's format: in a run's directory, in any folder, or on the hub."""

from pathlib import Path

from natsort import natsorted

from sae_transcoder.coder.names import coder_name
from sae_transcoder.config import ConfigError
from sae_transcoder.run_store import run_files


def coders_dir(name: str, setting: str) -> Path:
    """The folder that holds one folder per hookpoint: PATH/coders of a run, PATH itself, or a copy of a hub repository.

    setting: what gave the name, for messages. Raises ConfigError where there is no such folder or repository.
    """
    path = Path(name).expanduser()
    if not name or not path.is_dir():
        if not name or path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1 or path.exists():
            raise ConfigError(f"{setting}: no such folder; give a run's directory, a folder of sparsify coders, or a hub id")
        from huggingface_hub import snapshot_download

        try:
            path = Path(snapshot_download(name))
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
    by_name = {coder_name(p.relative_to(root)): p for p in folders if (p / "sae.safetensors").is_file()}
    return {name: by_name[name] for name in natsorted(by_name)}
