"""The tokens to train on and those held out."""

import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae_transcoder.config import Config, ConfigError, DatasetKind
from sae_transcoder.data import sources
from sae_transcoder.data.run_length import needed_samples
from sae_transcoder.data.token_cache import WINDOW, Sequences, fill, mixed

MEMMAP_BLOCK = 64  # consecutive sequences of a memmap that stay together when the whole file is mixed


@dataclass(frozen=True)
class TokenSets:
    """Sequences to train on and sequences that are never trained on."""

    train: Sequences
    heldout: Sequences


def prepare(cfg: Config, tokenizer: Callable[[], Any], vocabulary: int, ranks: int = 1) -> TokenSets:
    """The run's sequences, tokenised or read as far as it needs them, kept for the next run.

    ranks: how many share each batch.
    tokenizer: loads the model's tokenizer, called only where text has to be tokenised. vocabulary: how many ids the model has.
    Raises ConfigError for data that cannot be read, lacks its column, has ids beyond the vocabulary or fills no sequence.
    """
    needed = needed_samples(cfg, ranks)
    if cfg.dataset_kind == DatasetKind.memmap:
        return from_memmap(cfg, needed, vocabulary)
    if cfg.eval_split is not None:
        refuse_eval_split(cfg)
    separate = cfg.dataset_kind == DatasetKind.demo or cfg.eval_split is not None
    ahead = 0 if separate else cfg.eval_samples
    # Whole windows, so that the order of what is read does not depend on how much is read.
    total = None if needed is None else ahead + math.ceil(needed / WINDOW) * WINDOW
    rows = sequences_of(cfg, sources.train_split(cfg), tokenizer, vocabulary, total)
    available = len(rows) - ahead
    if total is not None:
        available = min(available, total - ahead)
    if available < 1:
        raise ConfigError(
            f"dataset_name={cfg.dataset_name}: {len(rows)} sequences of max_seq_length={cfg.max_seq_length} tokens in all"
            + (f", of which eval_samples={ahead} are held out" if ahead else "")
            + ": none is left to train on; give more text, or lower max_seq_length or eval_samples"
        )
    train = Sequences(rows, mixed(ahead, available, cfg.shuffle_seed), available if needed is None else min(available, needed))
    return TokenSets(train, heldout(cfg, tokenizer, vocabulary))


def heldout(cfg: Config, tokenizer: Callable[[], Any], vocabulary: int) -> Sequences:
    """The sequences that are held out, without those to train on; arguments and errors as `prepare` has them."""
    if cfg.eval_split is not None:
        refuse_eval_split(cfg)
    if cfg.dataset_kind == DatasetKind.memmap:
        return from_memmap(cfg, 1, vocabulary).heldout
    split = cfg.eval_split or ("heldout" if cfg.dataset_kind == DatasetKind.demo else sources.train_split(cfg))
    rows = sequences_of(cfg, split, tokenizer, vocabulary, cfg.eval_samples)
    if not len(rows):
        which = f"eval_split={cfg.eval_split}" if cfg.eval_split else f"dataset_name={cfg.dataset_name}"
        raise ConfigError(f"{which}: fills no sequence of max_seq_length={cfg.max_seq_length} tokens; choose another")
    return Sequences(rows, lambda positions: positions, min(cfg.eval_samples, len(rows)))


def refuse_eval_split(cfg: Config) -> None:
    """Raises ConfigError where `eval_split` would hold out the very sequences that are trained on."""
    if cfg.eval_split == cfg.dataset_split:
        raise ConfigError(
            f"eval_split={cfg.eval_split} and dataset_split={cfg.dataset_split}: held out is what is trained on; "
            f"leave eval_split out to hold out the first eval_samples={cfg.eval_samples} sequences"
        )
    if sources.local_paths(cfg) is not None and sources.saved_splits(cfg) is None:
        raise ConfigError(
            f"eval_split={cfg.eval_split}: the files of dataset_name={cfg.dataset_name} have no splits; "
            f"leave it out to hold out the first eval_samples={cfg.eval_samples} sequences"
        )


def sequences_of(cfg: Config, split: str, tokenizer: Callable[[], Any], vocabulary: int, total: int | None) -> np.ndarray:
    """One split's sequences [sequence, position] from the cache, which is extended as far as needed."""
    tokens_given = cfg.dataset_kind == DatasetKind.pretokenized

    def documents(skip: int) -> Iterator[np.ndarray]:
        source = itertools.islice(sources.readable(cfg, split), skip, None)
        if tokens_given:
            return sources.ids_of(cfg, source, skip, vocabulary)
        return sources.within(cfg, sources.tokenized(cfg, source, tokenizer()), vocabulary)

    parts = sources.made_from(cfg, split, vocabulary)
    label = f"{'reading' if tokens_given else 'tokenising'} {cfg.dataset_name} ({split})"
    join = not tokens_given
    return fill(sources.cache_folder(cfg), parts, cfg.max_seq_length, vocabulary, total, documents, join=join, label=label)[0]


def from_memmap(cfg: Config, needed: int | None, vocabulary: int) -> TokenSets:
    """The sequences of a flat file of ids, read in place. Raises ConfigError as `prepare` does."""
    path = sources.local_name(cfg)
    if not path.is_file():
        raise ConfigError(f"dataset_name={cfg.dataset_name}: no such file; give the path of a flat binary file of token ids")
    dtype, length = memmap_dtype(cfg, path), cfg.max_seq_length
    if path.stat().st_size % dtype.itemsize:
        raise ConfigError(
            f"dataset_name={cfg.dataset_name}: {path.stat().st_size} bytes are no whole number of {dtype} ids; check tokens_dtype"
        )
    count = path.stat().st_size // dtype.itemsize // length
    available = count - cfg.eval_samples
    if available < 1:
        raise ConfigError(
            f"dataset_name={cfg.dataset_name}: {count} sequences of max_seq_length={length} tokens, of which eval_samples={cfg.eval_samples} "
            "are held out: none is left to train on; lower max_seq_length or eval_samples"
        )
    rows = np.memmap(path, dtype, "r", shape=(count, length))
    blocks = np.random.default_rng(cfg.shuffle_seed).permutation(count // MEMMAP_BLOCK)
    mix = mixed(cfg.eval_samples, available, cfg.shuffle_seed)

    def spread(positions: np.ndarray) -> np.ndarray:
        """Positions in an order of shuffled blocks; the tail that fills no block stays last."""
        block = positions // MEMMAP_BLOCK
        inside = block < len(blocks)
        moved = positions.copy()
        moved[inside] = blocks[block[inside]] * MEMMAP_BLOCK + positions[inside] % MEMMAP_BLOCK
        return moved

    train = Sequences(rows, lambda positions: spread(mix(positions)), available if needed is None else min(available, needed))
    sets = TokenSets(train, Sequences(rows, spread, cfg.eval_samples))
    for part in (sets.heldout, sets.train):
        for start in range(0, len(part), WINDOW):
            worst = int(part[start : start + WINDOW].max())
            if worst >= vocabulary:
                raise ConfigError(sources.beyond(cfg, worst, vocabulary))
    return sets


def memmap_dtype(cfg: Config, path: Path) -> np.dtype:
    """The number format as set, else as FILE.json beside the file says. Raises ConfigError where neither does."""
    if cfg.tokens_dtype is not None:
        return np.dtype(cfg.tokens_dtype.value)
    side = path.with_name(path.name + ".json")
    try:
        named = json.loads(side.read_text())["dtype"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"tokens_dtype=null: {side} does not say the dtype of {path.name}; set tokens_dtype=uint16 or uint32"
        ) from None
    if named not in ("uint16", "uint32"):
        raise ConfigError(f"{side}: dtype {named} is not uint16 or uint32; set tokens_dtype")
    return np.dtype(named)
