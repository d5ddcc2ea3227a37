"""What `sae-eval PATH [overrides]` asks for: which coders, which settings, where the result goes. Nothing here imports torch."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_transcoder.coder.stored_coders import coders_dir, find_coders, run_dir_of
from sae_transcoder.config import Config, ConfigError, evaluation_settings, save_dir
from sae_transcoder.config.paths import local_path
from sae_transcoder.evaluation.settings import (
    SELECTION,
    composed_on,
    evaluation_config,
    refuse_trained_on,
    refuse_unread,
    run_settings,
    sparsify_settings,
)
from sae_transcoder.preflight.run_directory import refuse_unwritable
from sae_transcoder.run_store import status
from sae_transcoder.run_store.data_origin import DataOrigin


@dataclass(frozen=True)
class StoredCoders:
    """Coders on disk, and how the text for them is read. `root`: the folder of their folders; `coder_dirs`: {coder: its folder}; `run_dir`: the
    run that trained them, None where it is not known; `settings`: those in their files; `cfg`: these with overrides; `only_selected`: only
    the coders on hookpoints that `cfg` names are asked for."""

    path: str
    root: Path
    coder_dirs: dict[str, Path]
    run_dir: Path | None
    settings: dict[str, Any]
    cfg: Config
    only_selected: bool

    def refuse_trained_on(self) -> DataOrigin | None:
        """As evaluation.settings.refuse_trained_on, for the text that these settings hold out."""
        return refuse_trained_on(composed_on(self.settings, ()), self.cfg, self.run_dir) if self.run_dir else None


@dataclass(frozen=True)
class EvaluationRequest:
    """Coders to measure, and how. `step`, `tokens`: how far training was when they were saved, None where unknown; `held_out`: what the run
    held out, None where its data are others."""

    stored: StoredCoders
    output_dir: Path
    step: int | None
    tokens: int | None
    held_out: DataOrigin | None = None


def stored_coders(path: str, overrides: Sequence[str]) -> StoredCoders:
    """Finds the coders in `path` and composes the settings.

    Raises ConfigError where there are no coders, and for settings that are wrong, or that are not read where coders are trained already.
    """
    refuse_unread(overrides)
    root = coders_dir(path)
    if (root / "cfg.json").is_file():  # the folder of a single coder
        root, coder_dirs = root.parent, {root.name: root}
    else:
        coder_dirs = find_coders(root)
    if not coder_dirs:
        raise ConfigError(
            f"{path}: holds no coders (folders with cfg.json and sae.safetensors); give a run's directory or its coders/"
        )
    run_dir = run_dir_of(root)
    settings = run_settings(run_dir) if run_dir else sparsify_settings(root, coder_dirs)
    only_selected = any(override.split("=")[0] in SELECTION for override in overrides)
    if only_selected or not run_dir:
        settings = {name: value for name, value in settings.items() if name not in SELECTION}
    cfg = evaluation_config(settings, overrides)
    if cfg.cache_dir is not None:
        refuse_unwritable("cache_dir", cfg.cache_dir)
    return StoredCoders(path, root, coder_dirs, run_dir, settings, cfg, only_selected)


def evaluation_request(path: str, overrides: Sequence[str], output_dir: Path | None) -> EvaluationRequest:
    """Finds the coders in `path` and composes the settings. The result goes into `output_dir`; by default into `path`, with overrides
    into a folder below save_dir/evals.

    Raises ConfigError as `stored_coders` does, and for settings that would measure what the coders were trained on.
    """
    stored = stored_coders(path, overrides)
    held_out = stored.refuse_trained_on()
    if output_dir is not None:
        output_dir = local_path(output_dir, "--output")
    else:
        output_dir = local_path(path)
        if overrides or not output_dir.exists():
            key = hashlib.sha256(
                json.dumps([path, evaluation_settings(stored.cfg), sorted(stored.coder_dirs)]).encode()
            ).hexdigest()[:8]
            output_dir = save_dir(stored.cfg) / "evals" / f"{output_dir.name}-{key}"
    refuse_unwritable("--output", output_dir)
    return EvaluationRequest(stored, output_dir, *training_progress(stored.run_dir, stored.root), held_out)


def training_progress(run_dir: Path | None, root: Path) -> tuple[int | None, int | None]:
    """Optimizer steps and tokens after which the coders in `root` were saved; None where unknown."""
    if match := re.fullmatch(r"step(\d+)_tokens(\d+)", root.name):
        return int(match[1]), int(match[2])
    run_status = status.read(run_dir) if run_dir and root.name == "coders" else None
    return (run_status.step, run_status.tokens) if run_status and run_status.state == status.State.done else (None, None)
