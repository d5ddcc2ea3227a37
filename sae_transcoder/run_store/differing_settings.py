"""In which settings runs differ: those kept in a run's directory from those of a config. Only settings that change the result count."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from sae_transcoder.config import Config
from sae_transcoder.config.field_meanings import shown
from sae_transcoder.run_store import run_files
from sae_transcoder.run_store.checked_files import DamagedFile

OF_RESULT = [f.name for f in fields(Config) if f.metadata.get("result", True)]


def differences(directory: Path, cfg: Config) -> str:
    """How the settings of the run in a directory differ, as `lr: 0.01 there, 0.02 here`. Raises DamagedFile."""
    stored = run_files.read_config(directory)
    if not stored:
        return f"which are not known, {run_files.CONFIG} is missing"
    parts = in_words({name: ([stored[name]], [getattr(cfg, name)]) for name in differing(stored, cfg)})
    if missing := [name for name in OF_RESULT if name not in stored]:
        parts.append(f"it was begun by a version without {', '.join(missing)}")
    return "; ".join(parts) or "of the same values, but another version's"


def differing(stored: dict[str, Any], cfg: Config) -> list[str]:
    """The fields that a run's stored settings have with another value than the config."""
    return [name for name in OF_RESULT if name in stored and stored[name] != getattr(cfg, name)]


def in_words(values: dict[str, tuple[list[Any], list[Any]]]) -> list[str]:
    """{field: (values there, values here)} in words."""
    return [
        f"{name}: {', '.join(map(shown, there))} there, {', '.join(map(shown, here))} here"
        for name, (there, here) in values.items()
    ]


def stored_settings(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(directory, its settings) of the runs that lie in a folder; those that cannot be read are left out."""
    for directory in sorted(folder.iterdir()) if folder.is_dir() else []:
        with suppress(DamagedFile):
            if stored := run_files.read_config(directory):
                yield directory, stored


def nearest_run(folder: Path, cfg: Config) -> Path | None:
    """The run in a folder that differs from the config in the fewest settings; None where there is none."""
    runs = {directory: len(differing(stored, cfg)) for directory, stored in stored_settings(folder)}
    return min(runs, key=lambda directory: runs[directory], default=None)


def settings_apart(folder: Path, directories: Sequence[Path], cfgs: Sequence[Config]) -> tuple[int, str]:
    """How many runs lie in a folder beside those in `directories`, and in which settings all of them differ from all of `cfgs`.

    No words where there is no such setting: then some of the runs are of the same kind.
    """
    own = {directory.resolve() for directory in directories}
    here = {name: list(dict.fromkeys(shown(getattr(cfg, name)) for cfg in cfgs)) for name in OF_RESULT}
    apart: dict[str, tuple[list[Any], list[Any]]] = {name: ([], values) for name, values in here.items()}
    count = 0
    for directory, stored in stored_settings(folder):
        if directory.resolve() in own:
            continue
        if not apart:
            break
        count += 1
        apart = {name: values for name, values in apart.items() if name in stored and shown(stored[name]) not in values[1]}
        for name, (there, _) in apart.items():
            if shown(stored[name]) not in there:
                there.append(shown(stored[name]))
    return count, "; ".join(in_words(apart)) if count else ""
