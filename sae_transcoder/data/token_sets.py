"""The sequences to train on and those held out."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sae_transcoder.config import Config, ConfigError, DatasetKind, leaves_roles_out
from sae_transcoder.config.run_length import needed_samples
from sae_transcoder.data import sources, token_ids
from sae_transcoder.data.cache_key import cache_key_parts
from sae_transcoder.data.documents import Encoding, documents, encoding
from sae_transcoder.data.heldout_cache import StoredHeldOut, cached_heldout
from sae_transcoder.data.memmap import open_ids
from sae_transcoder.data.mixture import count_documents, part_names, parts, shares
from sae_transcoder.data.sequences import WINDOW, Sequences, in_order, mixed_order
from sae_transcoder.data.token_cache import RECORD, CacheState, cached_sequences
from sae_transcoder.run_store.data_origin import DataOrigin

MEMMAP_BLOCK = 64  # consecutive sequences of a memmap that stay together when the file is shuffled
BEGINNINGS = 64  # sequences of stored ids that are looked at for a begin token


@dataclass(frozen=True)
class Supply:
    """How many sequences the data holds to train on; exact: whether they were counted, or follow from the documents read so far."""

    sequences: int
    exact: bool


@dataclass(frozen=True)
class TokenSets:
    """Sequences to train on and sequences that are never trained on. `supply`: of how many the first are; None where that is not known."""

    train: Sequences
    heldout: Sequences
    origin: DataOrigin
    supply: Supply | None = None


def prepare(cfg: Config, tokenizer: Callable[[], Any], vocabulary: int, ranks: int = 1) -> TokenSets:
    """The run's sequences, tokenised or read as far as the run needs them, and cached for the next run.

    tokenizer: loads the model's tokenizer, called only for text; vocabulary: how many ids the model has; ranks: how many share each batch.
    Raises ConfigError for data that cannot be read, lacks its column, has ids beyond the vocabulary or fills no sequence.
    """
    needed = needed_samples(cfg, ranks)
    if cfg.dataset_kind == DatasetKind.memmap:
        return from_memmap(cfg, needed, vocabulary)
    refuse_eval_split(cfg)
    how = encoding(cfg, tokenizer, vocabulary)
    heldout = stored_heldout(cfg, how)
    num_first, left_out = not_trained_on(cfg, how, heldout)
    # Whole windows, so that the order of what is read does not depend on how much is read.
    total = None if needed is None else num_first + math.ceil(needed / WINDOW) * WINDOW
    rows, records, state = training_rows(cfg, how, total)
    available = (len(rows) if total is None else min(len(rows), total)) - num_first
    if available < 1:
        raise ConfigError(nothing_left(cfg, len(rows)))
    order = mixed_order(num_first, available, cfg.shuffle_seed)
    train = Sequences(rows, order, available if needed is None else min(available, needed), how.begin, ends(records))
    read = before(records, (num_first + available) * how.length)[left_out:]
    origin = replace(
        origin_of(cfg, how, heldout, before(records, num_first * how.length)),
        begin=common_begin(train) if how.tokenizer is None else how.special.begin,
        shares=shares(cfg, np.bincount(read["part"], read["tokens"], len(part_names(cfg))).tolist()),
        copies=int(np.isin(read["identity"], heldout.identities[heldout.sizes > 0]).sum()),
    )
    held_out = heldout_of(cfg, how, heldout, rows, records)
    sets = TokenSets(train, held_out, origin, supply(state, records[left_out:], len(rows) - num_first, how.length))
    for sequences, kind in ((sets.train, "to train on"), (sets.heldout, "held out")):
        refuse_no_assistant(cfg, sequences, kind)
    return sets


def supply(state: CacheState, records: np.ndarray, num_rows: int, length: int) -> Supply | None:
    """How many sequences of `length` ids there are to train on, of which `num_rows` have been read, from the documents of these records."""
    if state.exhausted or state.documents == state.of_documents:
        return Supply(num_rows, exact=True)
    if state.of_documents is None or not len(records):
        return None
    unread = (state.of_documents - state.documents) * records["tokens"].mean()
    return Supply(num_rows + round(unread / length), exact=False)


def refuse_no_assistant(cfg: Config, sequences: Sequences, kind: str) -> None:
    """Raises ConfigError where train_on=assistant leaves no position of the sequences, of those to train on the first WINDOW."""
    if leaves_roles_out(cfg) and not (sequences[:WINDOW] >= 0).any():
        raise ConfigError(
            f"train_on=assistant: in {min(WINDOW, len(sequences)):,} sequences {kind} of dataset_name={cfg.dataset_name} there is no position of "
            "a message whose role is assistant; check the messages' roles and the chat template, or set train_on=all"
        )


def has_own_split(cfg: Config) -> bool:
    """Whether a split of its own is held out."""
    return cfg.eval_split is not None or cfg.dataset_kind == DatasetKind.demo


def not_trained_on(cfg: Config, how: Encoding, heldout: StoredHeldOut) -> tuple[int, int]:
    """How many sequences at the start of the training split are not trained on, and of how many documents, which are held out.

    A sequence in which the last of these documents ends is none to train on.
    """
    if has_own_split(cfg):
        return 0, 0
    if heldout.divided:
        return cfg.eval_samples, 0
    return math.ceil(int(heldout.sizes.sum()) / how.length), len(heldout.sizes)


def training_rows(cfg: Config, how: Encoding, total: int | None) -> tuple[np.ndarray, np.ndarray, CacheState]:
    """The rows [sequence, position] of the training split, at least `total` (None: all) where there are so many, their documents' records, and
    how far the split has been read."""
    split = sources.train_split(cfg)
    key_parts = cache_key_parts(cfg, split, how.vocabulary, how.special)
    return cached_sequences(
        sources.cache_dir(cfg), key_parts, how.length, how.dtype, total, lambda skip: documents(cfg, split, how, skip), label(cfg, split, how),
        lambda: count_documents(cfg, split),
    )  # fmt: skip


def label(cfg: Config, split: str, how: Encoding) -> str:
    """What is done with a split, for the terminal."""
    return f"{'reading' if how.tokenizer is None else 'tokenising'} {' + '.join(part_names(cfg))} ({split})"


def before(records: np.ndarray, num_ids: int) -> np.ndarray:
    """The records of the documents that begin before so many ids."""
    return records[ends(records) - records["tokens"] < num_ids]


def nothing_left(cfg: Config, num_rows: int) -> str:
    """The message for data that fills no sequence beside those held out."""
    own_split, fewer = has_own_split(cfg), max(1, num_rows // 10)
    can_be_fewer = not own_split and fewer < min(num_rows, cfg.eval_samples)
    return (
        f"dataset_name={cfg.dataset_name}: {num_rows} sequences of max_seq_length={cfg.max_seq_length} tokens in all"
        + ("" if own_split else f", and eval_samples={cfg.eval_samples} are to be held out")
        + ": none is left to train on; give more text, or lower max_seq_length"
        + (f" or eval_samples, for example to eval_samples={fewer}" if can_be_fewer else "")
    )


def stored_heldout(cfg: Config, how: Encoding) -> StoredHeldOut:
    """The held-out sequences and their documents, in the cache."""
    split = cfg.eval_split or ("heldout" if cfg.dataset_kind == DatasetKind.demo else sources.train_split(cfg))
    made_from = cache_key_parts(cfg, split, how.vocabulary, how.special)
    stored = cached_heldout(
        sources.cache_dir(cfg), made_from, documents(cfg, split, how), cfg.eval_samples, cfg.shuffle_seed, how,
        own_split=has_own_split(cfg), label=label(cfg, split, how),
        in_all=lambda: count_documents(cfg, split),
    )  # fmt: skip
    if not len(stored.rows) and not stored.divided:
        setting = f"eval_split={cfg.eval_split}" if cfg.eval_split else f"dataset_name={cfg.dataset_name}"
        raise ConfigError(f"{setting}: fills no sequence of max_seq_length={cfg.max_seq_length} tokens; choose another")
    return stored


def heldout_of(cfg: Config, how: Encoding, stored: StoredHeldOut, training: np.ndarray, records: np.ndarray) -> Sequences:
    """The held-out sequences; where documents are divided, the first of those to train on, of whose documents these are the records."""
    rows, document_ends = (training, ends(records)) if stored.divided else (stored.rows, np.cumsum(stored.tokens))
    return Sequences(rows, in_order, min(cfg.eval_samples, len(rows)), how.begin, document_ends)


def ends(records: np.ndarray) -> np.ndarray:
    """Where each of these documents ends among the ids of all."""
    return np.cumsum(records["tokens"], dtype=np.int64)


def origin_of(cfg: Config, how: Encoding, stored: StoredHeldOut, first: np.ndarray) -> DataOrigin:
    """Where the held-out sequences come from; first: the records of the documents that are divided."""
    parts, tokens = (first["part"], first["tokens"]) if stored.divided else (stored.parts, stored.tokens)
    by_part = np.bincount(parts, tokens, len(part_names(cfg))).tolist()
    return DataOrigin(
        how.special.begin,
        how.special.separator,
        int((tokens > 0).sum()),
        shares(cfg, by_part),
        divided=bool(stored.divided),
        heldout_identities=tuple(stored.identities.tolist()),
    )


def common_begin(sequences: Sequences) -> tuple[int, ...]:
    """The id with which the first sequences all begin; empty where they differ."""
    first = set(sequences[:BEGINNINGS][:, 0].tolist())
    return tuple(first) if len(first) == 1 and len(sequences) > 1 else ()


def heldout_sequences(cfg: Config, tokenizer: Callable[[], Any], vocabulary: int) -> tuple[Sequences, DataOrigin]:
    """The held-out sequences alone and where they come from, without preparing those to train on; arguments and errors as in `prepare`."""
    if cfg.dataset_kind == DatasetKind.memmap:
        sets = from_memmap(cfg, 1, vocabulary)
        return sets.heldout, sets.origin
    refuse_eval_split(cfg)
    how = encoding(cfg, tokenizer, vocabulary)
    stored = stored_heldout(cfg, how)
    rows, records = training_rows(cfg, how, cfg.eval_samples)[:2] if stored.divided else (stored.rows, np.zeros(0, RECORD))
    first = before(records, cfg.eval_samples * how.length) if stored.divided else records
    sequences = heldout_of(cfg, how, stored, rows, records)
    refuse_no_assistant(cfg, sequences, "held out")
    origin = origin_of(cfg, how, stored, first)
    return sequences, replace(origin, begin=common_begin(sequences)) if how.tokenizer is None else origin


def refuse_eval_split(cfg: Config) -> None:
    """Raises ConfigError where `eval_split` would hold out the sequences that are trained on, or the data has no splits."""
    if cfg.eval_split is None:
        return
    if cfg.eval_split == cfg.dataset_split:
        raise ConfigError(
            f"eval_split={cfg.eval_split} and dataset_split={cfg.dataset_split}: held out is what is trained on; "
            f"leave eval_split out to hold out documents of it"
        )
    without = [part for part in parts(cfg) if sources.local_paths(part) is not None and sources.saved_splits(part) is None]
    if without:
        raise ConfigError(
            f"eval_split={cfg.eval_split}: the files of dataset_name={without[0].dataset_name} have no splits; "
            f"leave it out to hold out some of their documents"
        )


def from_memmap(cfg: Config, needed: int | None, vocabulary: int) -> TokenSets:
    """The sequences of a flat file of ids, read in place. Raises ConfigError as `prepare` does."""
    ids, length = open_ids(cfg), cfg.max_seq_length
    count = len(ids) // length
    available = count - cfg.eval_samples
    if available < 1:
        raise ConfigError(nothing_left(cfg, count))
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
    held_out = Sequences(rows, in_blocks, cfg.eval_samples)
    sets = TokenSets(train, held_out, DataOrigin(common_begin(train)), Supply(available, exact=True))
    for sequences in (sets.heldout, sets.train):
        for start in range(0, len(sequences), WINDOW):
            window = sequences[start : start + WINDOW]
            for extreme in (int(window.max()), int(window.min())):
                if not 0 <= extreme < vocabulary:
                    raise ConfigError(token_ids.unknown_id(cfg, extreme, vocabulary))
    return sets
