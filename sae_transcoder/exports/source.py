"""What is exported: the coders of a run as they lie on disk, with its settings and metrics."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from sae_transcoder.coder.stored_coders import THRESHOLDS, WEIGHTS, coder_faults, coder_settings, find_coders, run_dir_of
from sae_transcoder.config import FIELDS, Config, ConfigError
from sae_transcoder.config.paths import local_path
from sae_transcoder.run_store import data_origin, eval_file, run_files, status
from sae_transcoder.run_store.data_origin import DataOrigin
from sae_transcoder.run_store.eval_file import Evaluation
from sae_transcoder.run_store.status import State


@dataclass(frozen=True)
class StoredCoder:
    """A coder as it is stored: its folder, its cfg.json, its tensors under sparsify's names, and where latents fire above thresholds,
    `threshold` [latent], all the same where they share one."""

    coder_dir: Path
    cfg: dict[str, Any]
    weights: dict[str, Tensor]
    threshold: Tensor | None = None

    @property
    def activation(self) -> str:
        """How latents were selected in training: topk, groupmax, batchtopk or jumprelu."""
        return self.cfg.get("trained_activation", self.cfg["activation"])

    @property
    def matryoshka_widths(self) -> list[int] | None:
        """The widths of nested dictionaries, None for one dictionary."""
        return self.cfg.get("matryoshka_widths")


@dataclass(frozen=True)
class Source:
    """What is exported. `path`: the folder that holds `coders` {name: coder}; `settings`: the run's config; `evaluation`: its held-out
    metrics, None for best/ and snapshots; `origin`: what its sequences were made of, None for a run of an earlier version."""

    path: Path
    coders: dict[str, StoredCoder]
    settings: dict[str, Any]
    evaluation: Evaluation | None
    origin: DataOrigin | None

    @property
    def begin(self) -> list[int]:
        """The ids at the start of every sequence that the coders were trained on."""
        return list(self.origin.begin) if self.origin else []

    @property
    def config(self) -> Config:
        """The run's settings as they were typed when it began."""
        return Config(**{name: self.settings[name] for name in FIELDS})


def read_source(path: str) -> Source:
    """Reads the coders of a run that is done, of its best/ or of a snapshot.

    Raises ConfigError where there are no coders, where they cannot be read, or where the run is not done.
    """
    root = local_path(path)
    root = root / "coders" if (root / "coders").is_dir() else root
    run_dir = run_dir_of(root)
    coder_dirs = find_coders(root)
    if run_dir is None or not coder_dirs:
        problem = "no coders" if run_dir else "no run" if root.is_dir() else "there is no such folder"
        raise ConfigError(f"{path}: {problem}; give the directory of a run, its best/ or one of its snapshots/")
    run_status, settings, origin = status.read(run_dir), run_files.read_config(run_dir), data_origin.read(run_dir)
    evaluation = eval_file.read(run_dir) if root.name == "coders" else None
    if (run_status is None or run_status.state != State.done) and root.parent.name != "snapshots":
        progress = (
            f"its run is {run_status.state} at step {run_status.step} of {run_status.total}"
            if run_status
            else "its run has not begun"
        )
        raise ConfigError(f"{path}: {progress}; finish it by the command that began it, or export one of its snapshots/")
    if missing := [name for name in FIELDS if name not in settings]:
        raise ConfigError(f"{run_dir / run_files.CONFIG}: lacks {', '.join(missing)}; it is of another version of this program")
    return Source(root, {name: read_coder(coder_dir) for name, coder_dir in coder_dirs.items()}, settings, evaluation, origin)


def read_coder(coder_dir: Path) -> StoredCoder:
    """Reads a coder's files. Raises ConfigError where they are damaged."""
    if faults := coder_faults(coder_dir):
        raise ConfigError(*(f"{fault}; export another copy" for fault in faults))
    cfg, weights = coder_settings(coder_dir), load_file(coder_dir / WEIGHTS)
    if not (coder_dir / THRESHOLDS).is_file():
        return StoredCoder(coder_dir, cfg, weights)
    threshold = load_file(coder_dir / THRESHOLDS)["threshold"]
    return StoredCoder(coder_dir, cfg, weights, threshold.expand(len(weights["W_dec"])))
