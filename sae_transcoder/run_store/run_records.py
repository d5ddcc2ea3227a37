"""The runs below folders: found, read, named; and what can be shown of each.

Nothing here imports torch, and a thousand runs are read in a second or two.
"""

import json
import math
import os
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from natsort import natsort_keygen

from sae_transcoder.config import FIELDS
from sae_transcoder.run_store import eval_file, observed_status, status
from sae_transcoder.run_store.eval_file import Evaluation
from sae_transcoder.run_store.observed_status import Standing
from sae_transcoder.run_store.run_files import printable, read_config, read_evaluation, read_last, read_status
from sae_transcoder.run_store.status import State, Status

Complain = Callable[[str], None]
T = typing.TypeVar("T")


@dataclass(frozen=True)
class Record:
    """One run. `config`: the fields that its config.yaml has; `last`: the last line of metrics.jsonl that holds losses; `goes_on`: whether
    it trains, or will without anybody's doing."""

    directory: Path
    name: str
    status: Status
    config: Mapping[str, Any]
    last: Mapping[str, float]
    evaluation: Evaluation | None
    goes_on: bool = False


def find(folder: Path, complain: Complain) -> Iterator[Path]:
    """The runs' directories at and below a folder, in order; hidden folders and what lies inside a run are not looked into."""
    seen: set[tuple[int, int]] = set()

    def walk(path: Path) -> Iterator[Path]:
        try:
            stat = path.stat()
            if (stat.st_dev, stat.st_ino) in seen:  # a link that leads upwards
                return
            seen.add((stat.st_dev, stat.st_ino))
            with os.scandir(path) as scan:
                entries = list(scan)
            if any(entry.name == status.NAME for entry in entries):
                yield path
                return
            below = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
        except OSError as error:
            complain(f"{path}: {error.strerror or error}; skipped")
            return
        for name in below:
            yield from walk(path / name)

    yield from walk(folder)


def find_all(folders: Sequence[Path], complain: Complain) -> list[tuple[Path, str]]:
    """(directory, name) of every run below the folders, each once; names are relative to what the folders have in common.

    A folder that does not exist, or in which there are no runs, is named by `complain`.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            problem = "is not a folder" if folder.exists() else "does not exist"
            complain(f"{folder}: {problem}; name a folder of runs (save_dir, or a sweep's), or one run's directory")
            continue
        runs = list(find(folder, complain))
        if not runs:
            complain(
                f"{folder}: holds no runs (no folder in it has a {status.NAME}); name the save_dir of sae-train, or a sweep's folder"
            )
        for directory in runs:
            found.setdefault(os.path.realpath(directory), directory)
    if not found:
        return []
    above = [Path(os.path.abspath(folder)) for folder in folders if folder.is_dir()]
    common = Path(os.path.commonpath(above))
    if common in (Path(os.path.abspath(directory)) for directory in found.values()):
        common = common.parent
    named = [(directory, printable(os.path.relpath(os.path.abspath(directory), common))) for directory in found.values()]
    key = natsort_keygen()
    return sorted(named, key=lambda pair: key(pair[1]))


def read_all(folders: Sequence[Path], complain: Complain) -> list[Record]:
    """Every run below the folders that can be read, by name, as it is now; each fault is said by `complain`."""
    named = find_all(folders, complain)
    statuses = {directory: found for directory, _ in named if (found := part(read_status, directory, complain)) is not None}
    seen = observed_status.observe_all(statuses)
    return [read(directory, name, seen[directory], complain) for directory, name in named if directory in seen]


def read(directory: Path, name: str, found: Standing, complain: Complain) -> Record:
    """The run in a directory. Files that cannot be read are left out."""
    config, last = part(read_config, directory, complain), part(read_last, directory, complain)
    evaluation = part(read_evaluation, directory, complain)
    return Record(directory, name, found.status, config or {}, last or {}, evaluation, found.goes_on)


def part(reader: Callable[[Path], T], directory: Path, complain: Complain) -> T | None:
    """What a reader finds in a run's directory; None, and said, where it cannot be read."""
    try:
        return reader(directory)
    except (OSError, ValueError, OverflowError, RecursionError) as error:
        complain(f"{error}; left out")
        return None


def mean_of(last: Mapping[str, float], metric: str) -> float | None:
    """The mean over the coders of one metric in a line of metrics; None where the line does not have it."""
    values = [value for name, value in last.items() if name.startswith(f"{metric}/")]
    return math.fsum(values) / len(values) if values else None


def seconds_left(found: Status) -> float | None:
    """Seconds until a running run ends at its rate so far; None where that cannot be told."""
    if found.state != State.running or not found.step or not found.tokens_per_s:
        return None
    return found.tokens / found.step * max(0, found.total - found.step) / found.tokens_per_s


def values(record: Record) -> dict[str, Any]:
    """All that can be shown, sorted by and asked for of a run: {name: value}, None where it has no value.

    `eta` is in seconds; metrics are the means over the coders.
    """
    found = record.status
    means = record.evaluation.mean() if record.evaluation else {}
    return (
        {"run": record.name, "state": str(found.state), "step": found.step, "total": found.total, "tokens": found.tokens}
        | {"tokens_per_s": found.tokens_per_s or None, "eta": seconds_left(found), "why": found.why}
        | {name: record.config.get(name) for name in FIELDS}
        | {name: means.get(name) for name in eval_file.NAMES}
        | {"train_fvu": mean_of(record.last, "fvu"), "dead_fraction": mean_of(record.last, "dead_fraction")}
    )


def differing(records: Iterable[Record]) -> list[str]:
    """The config fields in which runs differ, names and folders aside, in the config's order; runs without a config do not count."""
    seen: dict[str, set[str]] = {}
    for record in records:
        for name, value in record.config.items():
            seen.setdefault(name, set()).add(json.dumps(value, default=str))
    return [name for name in FIELDS if len(seen.get(name, ())) > 1 and name not in ("run_name", "save_dir", "cache_dir")]
