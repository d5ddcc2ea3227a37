"""Coders that lie somewhere in sparsify's format: in a run's directory, in any folder, or on the hub."""

from pathlib import Path

from natsort import natsorted

from sae_transcoder.coder import names as coder_names
from sae_transcoder.config import ConfigError
from sae_transcoder.run_store import run_files


def folder(name: str, asked: str) -> Path:
    """The folder that holds one folder per hookpoint: PATH/coders of a run, PATH itself, or a copy of a hub repository.

    asked: the setting that names it, for messages. Raises ConfigError where there is none.
    """
    path = Path(name).expanduser()
    if not name or not path.is_dir():
        if not name or path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1 or path.exists():
            raise ConfigError(f"{asked}: no such folder; give a run's directory, a folder of sparsify coders, or a hub id")
        from huggingface_hub import snapshot_download

        try:
            path = Path(snapshot_download(name))
        except Exception as error:  # of many kinds: not found, offline, gated
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ConfigError(
                f"{asked}: neither a folder nor to be had from the hub ({reason}); check the name, the network or HF_HUB_OFFLINE"
            ) from error
    return path / "coders" if (path / "coders").is_dir() else path


def run_of(root: Path) -> Path | None:
    """The directory of the run that coders in `root` are of; None where that is not to be seen."""
    return next((p for p in (root, *root.parents[:3]) if (p / run_files.CONFIG).is_file()), None)


def find(root: Path) -> dict[str, Path]:
    """{coder: the folder of its cfg.json and sae.safetensors} below `root`, in natural order."""
    places = [p.parent for pattern in ("*/cfg.json", "seed*/*/cfg.json") for p in root.glob(pattern)]
    found = {coder_names.name_of(p.relative_to(root)): p for p in places if (p / "sae.safetensors").is_file()}
    return {name: found[name] for name in natsorted(found)}
