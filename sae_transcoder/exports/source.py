"""What is exported: the coders of a run as they lie on disk, with its settings and metrics."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from sae_transcoder.coder.stored_coders import find_coders, run_dir_of
from sae_transcoder.config import FIELDS, ConfigError
from sae_transcoder.run_store import eval_file, run_files, status
from sae_transcoder.run_store.eval_file import Evaluation
from sae_transcoder.run_store.status import State

Write = Callable[[Path], None]


@dataclass(frozen=True)
class Coder:
    """A coder as sparsify stored it: its folder, its cfg.json, its tensors by sparsify's names."""

    place: Path
    cfg: dict[str, Any]
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """What is exported: the coders by name, the run's settings and held-out metrics."""

    path: Path
    coders: dict[str, Coder]
    settings: dict[str, Any]
    evaluation: Evaluation | None


def source(path: str) -> Source:
    """The coders of a run that is done, of its best/ or of a snapshot.

    Raises ConfigError where there are none, where they cannot be read, or the run is not done.
    """
    root = Path(path).expanduser()
    root = root / "coders" if (root / "coders").is_dir() else root
    run = run_dir_of(root)
    places = find_coders(root)
    if run is None or not places:
        lacks = "no coders" if run else "no run" if root.is_dir() else "there is no such folder"
        raise ConfigError(f"{path}: {lacks}; give the directory of a run, its best/ or one of its snapshots/")
    try:
        found, settings = status.read(run), run_files.read_config(run)
        evaluation = eval_file.read(run) if root.name == "coders" else None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if (found is None or found.state != State.done) and root.parent.name != "snapshots":
        what = f"its run is {found.state} at step {found.step} of {found.total}" if found else "its run has not begun"
        raise ConfigError(f"{path}: {what}; finish it by the command that began it, or export one of its snapshots/")
    if lacking := [name for name in FIELDS if name not in settings]:
        raise ConfigError(f"{run / run_files.CONFIG}: lacks {', '.join(lacking)}; it is of another version of this program")
    return Source(root, {name: stored(place) for name, place in places.items()}, settings, evaluation)


def stored(place: Path) -> Coder:
    """A coder's files, read. Raises ConfigError where they are damaged."""
    try:
        return Coder(place, json.loads((place / "cfg.json").read_text()), load_file(place / "sae.safetensors"))
    except Exception as error:  # json and safetensors raise what the damage happens to hit
        raise ConfigError(f"{place}: cannot be read ({str(error).splitlines()[0]}); export another copy") from error
