"""A run on disk: the coders in sparsify's own format, and the exact state from which training goes on.

What is written stands beside its place first, is forced to the disk and then takes its place. The state is at all times the old
one or the new one. A coder's folder needs two renames: a process that dies between them leaves it out, until the run goes on.

Of several ranks each writes what only it knows to a file of its own, named by the batch; state.pt, written last, says which batch counts.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sae_transcoder.coder.corrected_coder import SparseCoder
from sae_transcoder.coder.names import coder_dir
from sae_transcoder.config import ConfigError
from sae_transcoder.process.atomic_files import sync
from sae_transcoder.run_store.status import state_path

FORMAT = 1  # of the state; another one is refused


class DiskError(Exception):
    """Something could not be written; what was there before is intact."""


def export(coders: Mapping[str, SparseCoder], folder: Path) -> None:
    """Writes each coder's cfg.json and sae.safetensors below `folder`; a coder that is there already is replaced whole.

    Raises DiskError where the disk takes no more.
    """
    # Beside the run's other files, hidden: load_many reads every folder below coders/ and best/.
    beside, before = folder.parent / f".{folder.name}.new", folder.parent / f".{folder.name}.old"
    try:
        shutil.rmtree(beside, ignore_errors=True)
        for name, coder in coders.items():
            coder.save_to_disk(beside / coder_dir(name))
        for name in coders:
            new, place = beside / coder_dir(name), folder / coder_dir(name)
            for file in new.iterdir():
                sync(file)
            shutil.rmtree(before, ignore_errors=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.exists():
                place.rename(before)
            new.rename(place)
            sync(place.parent)
    except Exception as error:  # safetensors raises its own kind for a full disk
        if isinstance(error, OSError) or "os error" in str(error).lower() or "I/O error" in str(error):
            raise DiskError(
                f"{folder}: the coders could not be written ({error}); free space and start the same command again"
            ) from error
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def save_state(directory: Path, signature: str, state: Mapping[str, Any]) -> None:
    """Replaces the run's training state at once. Raises DiskError where the disk takes no more; the old state then stays."""
    _replace(state_path(directory), signature, state)


def save_rank_state(directory: Path, signature: str, rank: int, batch: int, state: Mapping[str, Any]) -> None:
    """Writes what only this rank knows after so many batches, beside what is there. Raises DiskError like `save_state`."""
    _replace(rank_path(directory, rank, batch), signature, state)


def rank_path(directory: Path, rank: int, batch: int) -> Path:
    """The file of a rank's own part of the training state."""
    return state_path(directory).with_name(f"rank{rank}-{batch}.pt")


def drop_other_rank_states(directory: Path, batch: int) -> None:
    """Removes ranks' parts of the training state of other batches than this one."""
    for path in state_path(directory).parent.glob("rank*.pt"):
        if not path.stem.endswith(f"-{batch}"):
            path.unlink()


def _replace(place: Path, signature: str, state: Mapping[str, Any]) -> None:
    beside = place.with_name(f".{place.name}.new")
    try:
        place.parent.mkdir(exist_ok=True)
        with beside.open("wb") as file:
            torch.save({"format": FORMAT, "signature": signature} | dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, place)
        sync(place.parent)
    except (OSError, RuntimeError) as error:
        beside.unlink(missing_ok=True)
        # torch's writer raises RuntimeError for a full disk; one from elsewhere (a device, say) is another matter.
        if isinstance(error, RuntimeError) and not any(part in str(error) for part in ("inline_container", "write")):
            raise
        reason = error if isinstance(error, OSError) else str(error).splitlines()[0]
        raise DiskError(
            f"{place}: the training state could not be written ({reason}); free space and start the same command again"
        ) from error


def load_state(directory: Path, signature: str) -> dict[str, Any] | None:
    """The run's training state, None where there is none.

    Raises ConfigError for a file that is truncated, of other settings or of another version.
    """
    path = state_path(directory)
    return _load(path, signature) if path.exists() else None


def load_rank_state(directory: Path, signature: str, rank: int, batch: int) -> dict[str, Any]:
    """A rank's own part of the training state. Raises ConfigError like `load_state`, and where there is none."""
    path = rank_path(directory, rank, batch)
    if not path.exists():
        raise ConfigError(f"{path}: missing, without which the run cannot go on; remove {path.parent} to train it from its start")
    return _load(path, signature)


def _load(path: Path, signature: str) -> dict[str, Any]:
    fix = f"remove {path.parent} to train this run from its start"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what the damaged byte happens to hit
        raise ConfigError(f"{path}: truncated, or no training state ({str(error).splitlines()[0]}); {fix}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ConfigError(f"{path}: not a training state of this version; {fix}")
    if state["signature"] != signature:
        raise ConfigError(
            f"{path}: of a run with other settings (signature {state['signature']}, this one's is {signature}); {fix}"
        )
    return state


def drop_state(directory: Path) -> None:
    """Removes the training state of a run that is done."""
    shutil.rmtree(state_path(directory).parent, ignore_errors=True)
