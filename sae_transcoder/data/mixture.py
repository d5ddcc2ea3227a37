"""A data set of several parts, from which documents are drawn by a seeded choice."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sae_transcoder.config import Config, as_list
from sae_transcoder.data import sources


def parts(cfg: Config) -> list[Config]:
    """The settings of each part: those of the whole with one name and one configuration; of a data set that is no mixture, itself."""
    names, configs = cfg.dataset_name, cfg.dataset_config
    if not isinstance(names, list) and not isinstance(configs, list):
        return [cfg]
    count = max(len(as_list(names)), len(as_list(configs)))
    pairs = zip(*(each if isinstance(each, list) else [each] * count for each in (names, configs)), strict=True)
    return [replace(cfg, dataset_name=name, dataset_config=config, dataset_weights=None) for name, config in pairs]


def part_names(cfg: Config) -> list[str]:
    """What tells the parts apart: name, and configuration where there is one."""
    return [
        part.dataset_name if part.dataset_config is None else f"{part.dataset_name} {part.dataset_config}" for part in parts(cfg)
    ]


def draw_rows(cfg: Config, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (part, row) in an order that only the settings and the data decide. Ends where the part to draw from has ended."""
    rows = [sources.read_rows(part, split) for part in parts(cfg)]
    if len(rows) == 1:
        yield from ((0, row) for row in rows[0])
        return
    weights = np.array(cfg.dataset_weights or [1.0] * len(rows))
    choice = np.random.default_rng([cfg.shuffle_seed, len(rows)])
    ends = np.cumsum(weights / weights.max())
    ends /= ends[-1]
    while True:
        part = min(int(np.searchsorted(ends, choice.random(), side="right")), len(rows) - 1)
        row = next(rows[part], None)
        if row is None:
            return
        yield part, row


def count_documents(cfg: Config, split: str) -> int | None:
    """How many documents a split holds; None where that is not known: of a stream, and of a mixture, which ends with one of its parts."""
    (first, *others) = parts(cfg)
    return None if others else sources.count_rows(first, split)


def shares(cfg: Config, tokens: Sequence[int]) -> dict[str, float]:
    """{part: its share of the tokens}; tokens: how many come from each part. Empty for a data set that is no mixture."""
    names = part_names(cfg)
    if len(names) == 1:
        return {}
    return {name: count / max(1, sum(tokens)) for name, count in zip(names, tokens, strict=True)}
