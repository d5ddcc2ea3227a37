"""Coders that differ in nothing but the seed of their initialisation, and what their metrics are over the seeds."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from sae_transcoder.config import Config
from sae_transcoder.run_store.eval_file import CoderMetrics
from sae_transcoder.run_store.run_records import Record

SAME_SETTINGS = [f.name for f in fields(Config) if f.metadata.get("result", True) and f.name != "init_seeds"]

CoderPlace = tuple[Path, str]
"""A run's directory and a coder's name in it."""


@dataclass(frozen=True)
class Spread:
    """The mean and the standard deviation of values over seeds (of the sample: the divisor is their number less 1; None for one value)."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class SeedCoder:
    """A coder and its run."""

    record: Record
    coder: CoderMetrics

    @property
    def place(self) -> CoderPlace:
        return self.record.directory, self.coder.coder


@dataclass(frozen=True)
class SeedGroup:
    """The evaluated coders of one hookpoint whose settings are equal but for `init_seeds`, by rising seed, at least two; they may be of one run
    or of several."""

    members: tuple[SeedCoder, ...]

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings of the group; of those that change no result the first run's."""
        return self.members[0].record.config

    @property
    def hookpoint(self) -> str:
        return self.members[0].coder.hookpoint

    @property
    def seeds(self) -> list[int]:
        return [int(member.coder.seed or 0) for member in self.members]

    @property
    def runs(self) -> list[str]:
        """The names of the runs, each once."""
        return list(dict.fromkeys(member.record.name for member in self.members))


def spread(values: Sequence[float | None]) -> Spread | None:
    """The mean and deviation of values; None where one is missing."""
    present = [value for value in values if value is not None]
    if len(present) < max(1, len(values)):
        return None
    return Spread(float(np.mean(present)), float(np.std(present, ddof=1)) if len(present) > 1 else None)


def metric_spread(group: SeedGroup, metric: str) -> Spread | None:
    """A held-out metric of eval.json over the seeds; None where a coder lacks it, NaN where it is undefined for one."""
    return spread([member.coder.metrics.get(metric) for member in group.members])


def training_spread(group: SeedGroup, metric: str) -> Spread | None:
    """The last value of a metric of metrics.jsonl over the seeds; None where a coder lacks it."""
    return spread([member.record.last.get(f"{metric}/{member.coder.coder}") for member in group.members])


def settings_key(record: Record) -> str:
    """A text that is the same for runs that differ in their seeds alone: of equal settings, evaluated at the same step on the same tokens."""
    evaluation = record.evaluation
    measured = {name: value for name, value in evaluation.config.items() if name in SAME_SETTINGS} if evaluation else {}
    settings = {name: record.config.get(name) for name in SAME_SETTINGS}
    return json.dumps([settings, measured, evaluation and evaluation.step], sort_keys=True, default=str)


def seed_groups(records: Iterable[Record]) -> list[SeedGroup]:
    """The groups of two seeds and more among the runs, in the runs' order. Of equal coders, in several runs, the first counts."""
    alike: dict[tuple[object, ...], dict[int, SeedCoder]] = {}
    for record in records:
        if record.config and record.evaluation:
            settings = settings_key(record)
            for coder in record.evaluation.coders:
                if coder.seed is not None:
                    key = (settings, coder.hookpoint, coder.d, coder.num_latents)
                    alike.setdefault(key, {}).setdefault(coder.seed, SeedCoder(record, coder))
    return [SeedGroup(tuple(members[seed] for seed in sorted(members))) for members in alike.values() if len(members) > 1]
