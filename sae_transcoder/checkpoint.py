"""Coders on disk, in sparsify's own format."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from sae_transcoder.upstream import SparseCoder


def coder_folder(name: str) -> Path:
    """Where a coder lies below coders/: its hookpoint, or seed<N>/hookpoint for one of several seeds."""
    hookpoint, _, seed = name.partition("/")
    return Path(seed) / hookpoint


def export(coders: Mapping[str, SparseCoder], folder: Path) -> None:
    """Writes each coder's cfg.json and sae.safetensors below `folder`, which is replaced whole or not at all."""
    # Beside the run's other files, hidden: load_many reads every folder below coders/ and best/.
    beside, before = folder.parent / f".{folder.name}.new", folder.parent / f".{folder.name}.old"
    for leftover in (beside, before):
        shutil.rmtree(leftover, ignore_errors=True)
    for name, coder in coders.items():
        coder.save_to_disk(beside / coder_folder(name))
    if folder.exists():
        folder.rename(before)
    beside.rename(folder)
    shutil.rmtree(before, ignore_errors=True)
