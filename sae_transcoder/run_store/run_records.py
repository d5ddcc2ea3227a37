"""Finds the runs below folders, reads them, and gives the values of each that can be shown.

Nothing here imports torch. A thousand runs are read in a second or two.
"""

import json
import math
import os
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from natsort import natsort_keygen

from sae_transcoder.config import FIELDS
from sae_transcoder.config.paths import instead, path_fault
from sae_transcoder.run_store import eval_file, observed_status, other_evaluations, status
from sae_transcoder.run_store.checked_files import DamagedFile, printable
from sae_transcoder.run_store.eval_file import Evaluation
from sae_transcoder.run_store.observed_status import ObservedStatus
from sae_transcoder.run_store.other_evaluations import OtherEvaluation, told_apart
from sae_transcoder.run_store.run_files import read_config, read_last
from sae_transcoder.run_store.status import State, Status

Complain = Callable[[str], None]
T = typing.TypeVar("T")


@dataclass(frozen=True)
class Record:
    """One run. `config`: the fields in its config.yaml; `last`: the last line of metrics.jsonl with losses; `goes_on`: whether the run trains,
    or will be trained without anyone starting it again; `others`: {what it is called: an evaluation of coders/ beside the run's own}."""

    directory: Path
    name: str
    status: Status
    config: Mapping[str, Any]
    last: Mapping[str, float]
    evaluation: Evaluation | None
    goes_on: bool = False
    others: Mapping[str, OtherEvaluation] = field(default_factory=dict)


def find(folder: Path, complain: Complain) -> Iterator[Path]:
    """The runs' directories at and below a folder, in order. Hidden folders, and folders inside a run, are not searched."""
    visited: set[tuple[int, int]] = set()

    def walk(path: Path) -> Iterator[Path]:
        try:
            stat = path.stat()
            if (stat.st_dev, stat.st_ino) in visited:  # a link that leads upwards
                return
            visited.add((stat.st_dev, stat.st_ino))
            with os.scandir(path) as scan:
                entries = list(scan)
            if any(entry.name == status.NAME for entry in entries):
                yield path
                return
            shown = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
            below = []
            for entry in shown:
                if entry.is_symlink() and (fault := path_fault(path / entry.name)):
                    complain(f"{fault}; left out")
                elif entry.is_dir():
                    below.append(entry.name)
        except OSError as error:
            complain(f"{path}: {error.strerror or error}; skipped")
            return
        for name in below:
            yield from walk(path / name)

    yield from walk(folder)


def find_all(folders: Sequence[Path], complain: Complain) -> list[tuple[Path, str]]:
    """(directory, name) of every run below the folders, each once; names are relative to the folders' common parent.

    Calls `complain` for a folder that does not exist or holds no runs.
    """
    directories: dict[str, Path] = {}
    for folder in folders:
        if not os.path.isdir(folder):
            problem = "is not a folder" if os.path.exists(folder) else "does not exist"
            fault = path_fault(folder) or (
                f"{problem}; name a folder of runs (save_dir, or a sweep's), or one run's directory{instead(folder)}"
            )
            complain(f"{folder}: {fault}")
            continue
        runs = list(find(folder, complain))
        if not runs:
            complain(
                f"{folder}: holds no runs (no folder in it has a {status.NAME}); name the save_dir of sae-train, or a sweep's folder"
            )
        for directory in runs:
            directories.setdefault(os.path.realpath(directory), directory)
    if not directories:
        return []
    parents = [Path(os.path.abspath(folder)) for folder in folders if os.path.isdir(folder)]
    common = Path(os.path.commonpath(parents))
    if common in (Path(os.path.abspath(directory)) for directory in directories.values()):
        common = common.parent
    named = [(directory, printable(os.path.relpath(os.path.abspath(directory), common))) for directory in directories.values()]
    key = natsort_keygen()
    return sorted(named, key=lambda pair: key(pair[1]))


def read_all(folders: Sequence[Path], complain: Complain) -> list[Record]:
    """Every run below the folders whose status can be read, ordered by name. Calls `complain` for each fault."""
    named = find_all(folders, complain)
    statuses = {path: reported for path, _ in named if (reported := read_or_none(status.read, path, complain)) is not None}
    observed = observed_status.observe_all(statuses)
    records = [read(path, name, observed[path], complain) for path, name in named if path in observed]
    called = told_apart(other for record in records for other in record.others.values())
    return [
        replace(record, others={called[name]: other for name, other in record.others.items()}) if record.others else record
        for record in records
    ]


def read(directory: Path, name: str, observed: ObservedStatus, complain: Complain) -> Record:
    """The run in a directory, without the files that cannot be read."""
    config, last = read_or_none(read_config, directory, complain), read_or_none(read_last, directory, complain)
    evaluation = read_or_none(eval_file.read, directory, complain)
    others = read_others(directory, config or {}, evaluation, observed.status, complain)
    last = without_early_dead(last or {}, config or {})
    return Record(directory, name, observed.status, config or {}, last, evaluation, observed.goes_on, others)


def read_others(
    directory: Path, config: Mapping[str, Any], own: Evaluation | None, run: Status, complain: Complain
) -> dict[str, OtherEvaluation]:
    """{full label: evaluation} of coders/ beside the run's own; calls `complain` for one of coders that are trained further since."""
    others = {}
    for folder in other_evaluations.folders(directory / "coders", directory):
        if (evaluation := read_or_none(other_evaluations.read, folder, complain)) is None:
            continue
        if run.state == State.done and evaluation.step != run.step:
            complain(f"{folder}: measured before the run was done; left out, sae-eval with the same settings measures again")
            continue
        other = other_evaluations.labelled(evaluation, config, [coder.coder for coder in own.coders] if own else ())
        others[other.full_label] = other
    return others


def without_early_dead(last: Mapping[str, float], config: Mapping[str, Any]) -> dict[str, float]:
    """A line of metrics, with NaN for dead fractions of a time when no latent could be dead, for which earlier versions wrote 0."""
    too_early = last.get("tokens", math.inf) <= (config.get("dead_feature_threshold") or 0)
    return {name: math.nan if too_early and name.startswith("dead_fraction/") else value for name, value in last.items()}


def read_or_none(reader: Callable[[Path], T], directory: Path, complain: Complain) -> T | None:
    """The result of a reader of a run's files; None, after a complaint, where the file cannot be read."""
    try:
        return reader(directory)
    except DamagedFile as error:
        complain(f"{error}; left out")
        return None


def mean_of(last: Mapping[str, float], metric: str) -> float | None:
    """One metric's mean over the coders in a line of metrics; None where the line lacks it."""
    values = [value for name, value in last.items() if name.startswith(f"{metric}/")]
    return math.fsum(values) / len(values) if values else None


MATRYOSHKA = {"batchtopk": "matryoshka", "topk": "matryoshka_topk"}
"""{activation: the kind of Matryoshka coders that select latents by it}; the names are those of the choices of group `architecture`."""
CODER_KINDS = ("topk", "groupmax", "batchtopk", "jumprelu", *MATRYOSHKA.values())


def coder_kind(config: Mapping[str, Any]) -> str | None:
    """One of CODER_KINDS: the activation, or for nested dictionaries a kind of their own. None without a config."""
    activation = config.get("activation")
    return activation if config.get("matryoshka_widths") is None else MATRYOSHKA.get(str(activation), activation)


def seconds_left(run: Status) -> float | None:
    """Seconds until a running run ends, at its rate so far; None where that is unknown."""
    if run.state != State.running or not run.step or not run.tokens_per_s:
        return None
    return run.tokens / run.step * max(0, run.total - run.step) / run.tokens_per_s


def values(record: Record) -> dict[str, Any]:
    """Every value of a run that sae-report can show, sort by and select by: {name: value or None}.

    `eta` is in seconds, `kind` that of coder_kind; metrics are means over the coders, those of other evaluations named by `on_data`. `never_fired`
    is the share of latents that fired on no held-out token, `dead_fraction` of those that have not fired for dead_feature_threshold tokens of
    training.
    """
    run = record.status
    means = record.evaluation.mean() if record.evaluation else {}
    return (
        {"run": record.name, "state": str(run.state), "step": run.step, "total": run.total, "tokens": run.tokens}
        | {"tokens_per_s": run.tokens_per_s or None, "eta": seconds_left(run), "why": run.why}
        | {name: record.config.get(name) for name in FIELDS}
        | {"kind": coder_kind(record.config)}
        | {name: means.get(name) for name in eval_file.NAMES}
        | {"never_fired": eval_file.never_fired(means)}
        | {"train_fvu": mean_of(record.last, "fvu"), "dead_fraction": mean_of(record.last, "dead_fraction")}
        | {on_data(name, label): value for label, other in record.others.items() for name, value in other.evaluation.mean().items()}
    )


def on_data(metric: str, label: str) -> str:
    """The name of a metric in an evaluation beside the run's own: `fvu@other.jsonl`."""
    return f"{metric}@{label}"


def differing(records: Iterable[Record]) -> list[str]:
    """The config fields in which runs differ, other than names and folders, in the config's order. Runs without a config do not count."""
    values_by_field: dict[str, set[str]] = {}
    for record in records:
        for name, value in record.config.items():
            values_by_field.setdefault(name, set()).add(json.dumps(value, default=str))
    return [name for name in FIELDS if len(values_by_field.get(name, ())) > 1 and name not in ("run_name", "save_dir", "cache_dir")]
