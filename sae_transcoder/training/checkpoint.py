"""A run on disk: the coders in sparsify's own format, and the exact state from which training continues.

Everything is written to a temporary path, synced to the disk and then moved into place. The state is always the old one or the new one. A
coder's folder needs two renames: a process that dies between them leaves it missing until the run continues.

Each rank other than 0 writes its own part to a file named by the batch; state.pt, written last, says which batch is valid.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from sae_transcoder.coder.corrected_coder import SparseCoder
from sae_transcoder.coder.names import coder_dir
from sae_transcoder.config import ConfigError
from sae_transcoder.process.atomic_files import replace_file, sync
from sae_transcoder.run_store.status import state_path

FORMAT = 1  # of the state; any other is refused
# {part of a saved state: its type}, of the run and of a rank other than 0.
RANK_PARTS: dict[str, type] = {"signature": str, "run": dict, "rng": torch.Tensor}
RUN_PARTS = RANK_PARTS | {"best": dict, "settings": dict}


class DiskError(Exception):
    """A file could not be written; what was there before is intact."""


def export(coders: Mapping[str, SparseCoder], folder: Path) -> None:
    """Writes each coder's cfg.json and sae.safetensors below `folder`; a coder's folder that exists is replaced.

    Raises DiskError where they cannot be written.
    """
    # Hidden, beside the folder: load_many reads every folder below coders/ and best/.
    new_dir, old_dir = folder.parent / f".{folder.name}.new", folder.parent / f".{folder.name}.old"
    try:
        shutil.rmtree(new_dir, ignore_errors=True)
        for name, coder in coders.items():
            coder.save_to_disk(new_dir / coder_dir(name))
        for name in coders:
            written, place = new_dir / coder_dir(name), folder / coder_dir(name)
            for path in written.iterdir():
                sync(path)
            shutil.rmtree(old_dir, ignore_errors=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.exists():
                place.rename(old_dir)
            written.rename(place)
            sync(place.parent)
    except Exception as error:  # safetensors raises its own class for a full disk
        if isinstance(error, OSError) or "os error" in str(error).lower() or "I/O error" in str(error):
            raise DiskError(
                f"{folder}: the coders could not be written ({error}); free space and start the same command again"
            ) from error
        raise
    finally:
        shutil.rmtree(new_dir, ignore_errors=True)
        shutil.rmtree(old_dir, ignore_errors=True)


def save_state(directory: Path, signature: str, state: Mapping[str, Any]) -> None:
    """Replaces the run's training state atomically. Raises DiskError where it cannot be written; the old state then stays."""
    _replace(state_path(directory), signature, state)


def save_rank_state(directory: Path, signature: str, rank: int, batch: int, state: Mapping[str, Any]) -> None:
    """Writes this rank's own part of the training state after so many batches, beside those of earlier batches. Raises DiskError."""
    _replace(rank_path(directory, rank, batch), signature, state)


def rank_path(directory: Path, rank: int, batch: int) -> Path:
    """The path of a rank's own part of the training state."""
    return state_path(directory).with_name(f"rank{rank}-{batch}.pt")


def drop_other_rank_states(directory: Path, batch: int) -> None:
    """Removes ranks' parts of the training state from other batches than this one."""
    for path in state_path(directory).parent.glob("rank*.pt"):
        if not path.stem.endswith(f"-{batch}"):
            path.unlink()


def _replace(path: Path, signature: str, state: Mapping[str, Any]) -> None:
    def write(file: BinaryIO) -> None:
        torch.save({"format": FORMAT, "signature": signature} | dict(state), file)
        file.flush()
        os.fsync(file.fileno())

    try:
        path.parent.mkdir(exist_ok=True)
        replace_file(path, write)
        sync(path.parent)
    except (OSError, RuntimeError) as error:
        # torch's writer raises RuntimeError for a full disk; other RuntimeErrors (of a device, say) are not about the disk.
        if isinstance(error, RuntimeError) and not any(part in str(error) for part in ("inline_container", "write")):
            raise
        reason = error if isinstance(error, OSError) else str(error).splitlines()[0]
        raise DiskError(
            f"{path}: the training state could not be written ({reason}); free space and start the same command again"
        ) from error


def load_state(directory: Path, signature: str) -> dict[str, Any] | None:
    """The run's training state, None where there is none.

    Raises ConfigError for a file that is truncated, from other settings or from another version.
    """
    path = state_path(directory)
    return _load(path, signature, RUN_PARTS) if path.exists() else None


def load_rank_state(directory: Path, signature: str, rank: int, batch: int) -> dict[str, Any]:
    """A rank's own part of the training state. Raises ConfigError like `load_state`, and where the file is missing."""
    path = rank_path(directory, rank, batch)
    if not path.exists():
        raise ConfigError(f"{path}: missing, without which the run cannot go on; remove {path.parent} to train it from its start")
    return _load(path, signature, RANK_PARTS)


def _load(path: Path, signature: str, parts: Mapping[str, type]) -> dict[str, Any]:
    fix = f"remove {path.parent} to train this run from its start"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # its class depends on which byte is damaged
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"{path}: truncated, or no training state ({reason}); {fix}") from error
    if (
        not isinstance(state, dict)
        or state.get("format") != FORMAT
        or not all(isinstance(state.get(name), kind) for name, kind in parts.items())
    ):
        raise ConfigError(f"{path}: not a training state of this version; {fix}")
    if state["signature"] != signature:
        raise ConfigError(
            f"{path}: of a run with other settings than those that this directory keeps, a copy from elsewhere; {fix}"
        )
    return state


@contextmanager
def of_this_version(directory: Path) -> Iterator[None]:
    """Raises ConfigError where a part of the training state is found to be missing, or of another shape, as it is restored."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        path = state_path(directory)
        fix = f"remove {path.parent} to train this run from its start"
        raise ConfigError(f"{path}: not a training state of this version ({error!r}); {fix}") from error


def drop_state(directory: Path) -> None:
    """Removes the training state of a run that is done."""
    shutil.rmtree(state_path(directory).parent, ignore_errors=True)
