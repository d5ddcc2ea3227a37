"""The part of a pass that is done, on disk, so that a pass that was stopped goes on.

A folder of the result holds it as .partial/ until the pass is complete: state.safetensors of all coders, and the files of logs.py in a folder for
each. What those hold beyond the sizes in the state was written after it, and is dropped.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sae_transcoder.coder.names import coder_dir
from sae_transcoder.config import ConfigError
from sae_transcoder.latents.coder_pass import CoderPass
from sae_transcoder.process.atomic_files import replace_file

FOLDER, STATE = ".partial", "state.safetensors"


class Saved(NamedTuple):
    """How far a pass is. `sequences`: that are read; `sizes`, `tensors`: {coder: what CoderPass gave}."""

    sequences: int
    sizes: dict[str, dict[str, int]]
    tensors: dict[str, dict[str, Tensor]]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from the folder of a result while it is open. Raises ConfigError where one is at work there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.parent / f".{folder.name}.lock", timeout=0):
            yield
    except Timeout:
        raise ConfigError(f"{folder}: another process describes these latents now; wait for it, or stop it") from None


def log_folder(folder: Path, coder: str) -> Path:
    """Where a coder's growing files lie."""
    return folder / FOLDER / coder_dir(coder)


def read(folder: Path, fingerprint: str) -> Saved | None:
    """The saved part of the pass with that fingerprint; None where there is none. One of another pass, or that is damaged, is removed."""
    path = folder / FOLDER / STATE
    with contextlib.suppress(OSError, SafetensorError, ValueError, KeyError), safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])
        if about["fingerprint"] == fingerprint:
            tensors: dict[str, dict[str, Tensor]] = {coder: {} for coder in about["sizes"]}
            for key in file.keys():  # noqa: SIM118, which has no other iterator
                coder, _, name = key.partition("|")
                tensors[coder][name] = file.get_tensor(key)
            return Saved(about["sequences"], about["sizes"], tensors)
    remove(folder)
    return None


def write(folder: Path, fingerprint: str, sequences: int, coders: Mapping[str, CoderPass]) -> None:
    """Replaces the saved part."""
    sizes = {name: coder.sizes() for name, coder in coders.items()}
    about = json.dumps({"fingerprint": fingerprint, "sequences": sequences, "sizes": sizes})
    tensors = {
        f"{name}|{key}": values.contiguous().cpu() for name, coder in coders.items() for key, values in coder.tensors().items()
    }
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    replace_file(folder / FOLDER / STATE, lambda file: file.write(save(tensors, {"about": about})))


def remove(folder: Path) -> None:
    """Removes what is saved."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
