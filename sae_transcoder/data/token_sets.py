"""The sequences to train on and those held out."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_transcoder.config import Config, ConfigError, DatasetKind
from sae_transcoder.config.run_length import needed_samples
from sae_transcoder.data import sources, token_ids
from sae_transcoder.data.cache_key import cache_key_parts
from sae_transcoder.data.memmap import open_ids
from sae_transcoder.data.token_cache import WINDOW, Sequences, cached_sequences, mixed_order

MEMMAP_BLOCK = 64  # consecutive sequences of a memmap that stay together when the file is shuffled


@dataclass(frozen=True)
class TokenSets:
    """Sequences to train on and sequences that are never trained on."""

    train: Sequences
    heldout: Sequences


def prepare(cfg: Config, tokenizer: Callable[[], Any], vocabulary: int, ranks: int = 1) -> TokenSets:
    """The run's sequences, tokenised or read as far as the run needs them, and cached for the next run.

    tokenizer: loads the model's tokenizer, called only where text has to be tokenised; vocabulary: how many ids the model has; ranks: how many
    share each batch.
    Raises ConfigError for data that cannot be read, lacks its column, has ids beyond the vocabulary or fills no sequence.
    """
    needed = needed_samples(cfg, ranks)
    if cfg.dataset_kind == DatasetKind.memmap:
        return from_memmap(cfg, needed, vocabulary)
    if cfg.eval_split is not None:
        refuse_eval_split(cfg)
    has_eval_split = cfg.dataset_kind == DatasetKind.demo or cfg.eval_split is not None
    num_heldout = 0 if has_eval_split else cfg.eval_samples  # the first sequences of the training split
    # Whole windows, so that the order of what is read does not depend on how much is read.
    total = None if needed is None else num_heldout + math.ceil(needed / WINDOW) * WINDOW
    rows = split_sequences(cfg, sources.train_split(cfg), tokenizer, vocabulary, total)
    available = len(rows) - num_heldout
    if total is not None:
        available = min(available, total - num_heldout)
    if available < 1:
        raise ConfigError(
            f"dataset_name={cfg.dataset_name}: {len(rows)} sequences of max_seq_length={cfg.max_seq_length} tokens in all"
            + (f", of which eval_samples={num_heldout} are held out" if num_heldout else "")
            + ": none is left to train on; give more text, or lower max_seq_length or eval_samples"
        )
    train = Sequences(
        rows, mixed_order(num_heldout, available, cfg.shuffle_seed), available if needed is None else min(available, needed)
    )
    return TokenSets(train, heldout_sequences(cfg, tokenizer, vocabulary))


def heldout_sequences(cfg: Config, tokenizer: Callable[[], Any], vocabulary: int) -> Sequences:
    """The held-out sequences alone, without preparing those to train on; arguments and errors as in `prepare`."""
    if cfg.eval_split is not None:
        refuse_eval_split(cfg)
    if cfg.dataset_kind == DatasetKind.memmap:
        return from_memmap(cfg, 1, vocabulary).heldout
    split = cfg.eval_split or ("heldout" if cfg.dataset_kind == DatasetKind.demo else sources.train_split(cfg))
    rows = split_sequences(cfg, split, tokenizer, vocabulary, cfg.eval_samples)
    if not len(rows):
        setting = f"eval_split={cfg.eval_split}" if cfg.eval_split else f"dataset_name={cfg.dataset_name}"
        raise ConfigError(f"{setting}: fills no sequence of max_seq_length={cfg.max_seq_length} tokens; choose another")
    return Sequences(rows, lambda positions: positions, min(cfg.eval_samples, len(rows)))


def refuse_eval_split(cfg: Config) -> None:
    """Raises ConfigError where `eval_split` would hold out the sequences that are trained on, or the data has no splits."""
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


def split_sequences(cfg: Config, split: str, tokenizer: Callable[[], Any], vocabulary: int, total: int | None) -> np.ndarray:
    """A split's sequences [sequence, position] from the cache, to which it adds what is missing; total: how many are needed, None: all."""
    has_ids = cfg.dataset_kind == DatasetKind.pretokenized

    def documents(skip: int) -> Iterator[np.ndarray]:
        rows = itertools.islice(sources.read_rows(cfg, split), skip, None)
        if has_ids:
            return token_ids.row_ids(cfg, rows, skip, vocabulary)
        return token_ids.check_ids(cfg, token_ids.tokenize(cfg, rows, tokenizer()), vocabulary)

    key_parts = cache_key_parts(cfg, split, vocabulary)
    label = f"{'reading' if has_ids else 'tokenising'} {cfg.dataset_name} ({split})"
    return cached_sequences(
        sources.cache_dir(cfg), key_parts, cfg.max_seq_length, vocabulary, total, documents, join=not has_ids, label=label
    )


def from_memmap(cfg: Config, needed: int | None, vocabulary: int) -> TokenSets:
    """The sequences of a flat file of ids, read in place. Raises ConfigError as `prepare` does."""
    path = sources.local_name(cfg)
    if not path.is_file():
        raise ConfigError(f"dataset_name={cfg.dataset_name}: no such file; give the path of a flat binary file of token ids")
    ids, length = open_ids(cfg, path), cfg.max_seq_length
    count = len(ids) // length
    available = count - cfg.eval_samples
    if available < 1:
        raise ConfigError(
            f"dataset_name={cfg.dataset_name}: {count} sequences of max_seq_length={length} tokens, of which eval_samples={cfg.eval_samples} "
            "are held out: none is left to train on; lower max_seq_length or eval_samples"
        )
    rows = ids[: count * length].reshape(count, length)
    blocks = np.random.default_rng(cfg.shuffle_seed).permutation(count // MEMMAP_BLOCK)
    within_windows = mixed_order(cfg.eval_samples, available, cfg.shuffle_seed)

    def in_blocks(positions: np.ndarray) -> np.ndarray:
        """Rows in the order of shuffled blocks; the rows at the end that fill no block stay last."""
        block = positions // MEMMAP_BLOCK
        in_block = block < len(blocks)
        rows = positions.copy()
        rows[in_block] = blocks[block[in_block]] * MEMMAP_BLOCK + positions[in_block] % MEMMAP_BLOCK
        return rows

    train = Sequences(
        rows, lambda positions: in_blocks(within_windows(positions)), available if needed is None else min(available, needed)
    )
    sets = TokenSets(train, Sequences(rows, in_blocks, cfg.eval_samples))
    for sequences in (sets.heldout, sets.train):
        for start in range(0, len(sequences), WINDOW):
            window = sequences[start : start + WINDOW]
            for extreme in (int(window.max()), int(window.min())):
                if not 0 <= extreme < vocabulary:
                    raise ConfigError(token_ids.unknown_id(cfg, extreme, vocabulary))
    return sets
