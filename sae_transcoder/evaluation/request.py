"""What `sae-eval PATH ... [overrides]` asks for: which coders, which settings, where the result goes. Nothing here imports torch."""

import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sae_transcoder.coder.stored_coders import coders_dir, find_coders, run_dir_of
from sae_transcoder.config import Config, ConfigError, evaluation_settings, save_dir
from sae_transcoder.config.composer import from_values
from sae_transcoder.config.naming import settings_hash
from sae_transcoder.config.paths import local_path
from sae_transcoder.evaluation.settings import (
    SELECTION,
    evaluation_config,
    refuse_trained_on,
    refuse_unread,
    run_settings,
    sparsify_settings,
)
from sae_transcoder.preflight.run_directory import refuse_unwritable
from sae_transcoder.run_store import other_evaluations, run_records, status
from sae_transcoder.run_store.data_origin import DataOrigin

Tell = Callable[[str], None]


@dataclass(frozen=True)
class StoredCoders:
    """Coders on disk, and how the text for them is read. `root`: the folder of their folders; `coder_dirs`: {coder: its folder}; `run_dir`: the
    run that trained them, None where it is not known; `settings`: those in their files; `cfg`: these with overrides; `only_selected`: only
    the coders on hookpoints that `cfg` names are asked for; `notes`: which settings of the run's own data are left, and why."""

    path: str
    root: Path
    coder_dirs: dict[str, Path]
    run_dir: Path | None
    settings: dict[str, Any]
    cfg: Config
    only_selected: bool
    notes: Sequence[str] = ()

    def refuse_trained_on(self) -> DataOrigin | None:
        """As evaluation.settings.refuse_trained_on, for the text that these settings hold out."""
        return refuse_trained_on(from_values(self.settings), self.cfg, self.run_dir) if self.run_dir else None


@dataclass(frozen=True, eq=False)
class EvaluationRequest:
    """Coders to measure, and how. `step`, `tokens`: how far training was when they were saved, None where unknown; `held_out`: what the run
    held out, None where its data are others."""

    stored: StoredCoders
    output_dir: Path
    step: int | None
    tokens: int | None
    held_out: DataOrigin | None = None

    @property
    def cfg(self) -> Config:
        """The settings by which text is read."""
        return self.stored.cfg


class HasConfig(Protocol):
    """What is asked for of one run."""

    @property
    def cfg(self) -> Config: ...


Request = TypeVar("Request", bound=HasConfig)


def grouped(requests: Sequence[Request], names: Iterable[str]) -> list[list[Request]]:
    """The requests in groups of equal settings in these fields, in the order of their first."""
    names, by_values = list(names), dict[str, list[Request]]()
    for request in requests:
        by_values.setdefault(repr([getattr(request.cfg, name) for name in names]), []).append(request)
    return list(by_values.values())


def stored_coders(path: str, overrides: Sequence[str], own: Iterable[str] = ()) -> StoredCoders:
    """Finds the coders in `path` and composes the settings.

    own: names of the command's own settings, of which a mistyped one may be meant. Raises ConfigError where there are no coders, and for
    settings that are wrong, or that are not read where coders are trained already.
    """
    refuse_unread(overrides, own)
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
    cfg, notes = evaluation_config(settings, overrides)
    if cfg.cache_dir is not None:
        refuse_unwritable("cache_dir", cfg.cache_dir)
    return StoredCoders(path, root, coder_dirs, run_dir, settings, cfg, only_selected, notes)


def evaluation_requests(paths: Sequence[str], overrides: Sequence[str], output: Path | None, tell: Tell) -> list[EvaluationRequest]:
    """What is to be measured, for each run in the paths; a folder of runs stands for all of them. `tell` is called with what is left out.

    output: folder of the result, None for the usual one (`usual_output`). Raises ConfigError as `stored_coders` does, for settings that would
    measure what the coders were trained on, and for an output of several runs.
    """
    requests = []
    for path in one_output(runs_in_all(paths, tell), output):
        stored = stored_coders(path, overrides)
        held_out = stored.refuse_trained_on()
        folder = local_path(output, "--output") if output else usual_output(stored, overrides)
        refuse_unwritable("--output", folder)
        requests.append(EvaluationRequest(stored, folder, *training_progress(stored.run_dir, stored.root), held_out))
    return requests


def split_paths(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The paths among a command's arguments, and the others, which are NAME=VALUE; what is there on disk is a path whatever its name."""
    paths = [argument for argument in arguments if "=" not in argument or os.path.lexists(argument)]
    return paths, [argument for argument in arguments if argument not in paths]


def one_output(paths: Sequence[str], output: Path | None) -> Sequence[str]:
    """The paths. Raises ConfigError where several would have the same output."""
    if output is not None and len(paths) > 1:
        raise ConfigError(f"--output {output}: for one run only, and there are {len(paths)}; leave it out")
    return paths


def runs_in_all(paths: Sequence[str], tell: Tell) -> list[str]:
    """The runs in the paths, each once. Raises ConfigError as `runs_in` does."""
    by_place: dict[str, str] = {}
    for run in (run for path in paths for run in runs_in(path, tell)):
        by_place.setdefault(os.path.realpath(local_path(run)), run)
    return list(by_place.values())


def runs_in(path: str, tell: Tell) -> list[str]:
    """The path; or, for a folder without coders that holds runs, those that have coders; `tell` is called with what is wrong with others.

    Raises ConfigError where none has coders.
    """
    folder = local_path(path)
    if (
        not folder.is_dir()
        or (folder / "coders").is_dir()
        or any(folder.glob("*/cfg.json"))
        or any(folder.glob("seed*/*/cfg.json"))
    ):
        return [path]
    runs = [run for run in run_records.find(folder, tell) if run != folder]
    if not runs:
        return [path]
    with_coders = [str(run) for run in runs if (run / "coders").is_dir()]
    if not with_coders:
        raise ConfigError(f"{path}: none of its {len(runs)} runs has coders yet; finish one, or give one of its snapshots/")
    if without := len(runs) - len(with_coders):
        tell(f"{path}: {without} of its {len(runs)} runs {'has' if without == 1 else 'have'} no coders yet; left out")
    return with_coders


def usual_output(stored: StoredCoders, overrides: Sequence[str]) -> Path:
    """Where a result goes. What a run measures at its end, measured again, lies where it did: in the run's directory, that of best/ or of a
    snapshot in these; anything else in evals/ of the run, or with `save_dir`, and for coders of no run, below save_dir/evals."""
    path, run_dir = local_path(stored.path), stored.run_dir
    selected = [getattr(stored.cfg, name) for name in SELECTION] if stored.only_selected else None
    key: dict[str, Any] = {
        "settings": evaluation_settings(replace(stored.cfg, eval_end_to_end=True)), "coders": sorted(stored.coder_dirs), "selected": selected
    }  # fmt: skip
    if path.exists() and not any(override.startswith("save_dir=") for override in overrides):
        if not overrides or (run_dir is not None and is_own(stored)):
            return path
        if run_dir is not None and stored.root != run_dir:
            return other_evaluations.folder_of(stored.root, run_dir) / f"{folder_name(stored.cfg)}-{settings_hash(key)}"
    return save_dir(stored.cfg) / other_evaluations.FOLDER / f"{path.name}-{settings_hash({**key, 'path': stored.path})}"


def is_own(stored: StoredCoders) -> bool:
    """Whether what is measured is what the run itself measures, of all its coders."""
    return not stored.only_selected and evaluation_settings(stored.cfg) == evaluation_settings(from_values(stored.settings))


def folder_name(cfg: Config) -> str:
    """The data set's name as a part of a folder's."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", other_evaluations.short_name(cfg.dataset_name))[:60]


def titles(coders: Iterable[StoredCoders]) -> list[str]:
    """What a table or page calls each run: the name of its directory, or where several have the same, its path."""
    paths = [stored.path for stored in coders]
    names = [Path(path).resolve().name for path in paths]
    return [name if names.count(name) == 1 else path for name, path in zip(names, paths, strict=True)]


def tell(text: str) -> None:
    """Says what the user should know, beside the results."""
    print(f"note: {text}", file=sys.stderr)


def tell_notes(stored: Iterable[StoredCoders]) -> None:
    """Says once what several coders' notes say."""
    for note in dict.fromkeys(note for each in stored for note in each.notes):
        tell(note)


def training_progress(run_dir: Path | None, root: Path) -> tuple[int | None, int | None]:
    """Optimizer steps and tokens after which the coders in `root` were saved; None where unknown."""
    if match := re.fullmatch(r"step(\d+)_tokens(\d+)", root.name):
        return int(match[1]), int(match[2])
    run_status = status.read(run_dir) if run_dir and root.name == "coders" else None
    return (run_status.step, run_status.tokens) if run_status and run_status.state == status.State.done else (None, None)
