"""Token sequences on disk: written once as documents are read, extended when a longer run needs more, read in a mixed order."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from sae_transcoder.process.atomic_files import replace_text

WINDOW = 1024  # sequences among which the order is mixed, so that one long document does not fill a batch
WRITE_EVERY = 256  # sequences held in memory before they are written
PLAIN_EVERY = 5.0  # seconds between two lines where there is no terminal


@dataclass(frozen=True)
class Sequences:
    """Token sequences on disk in reading order: `s[a:b]` is an int64 array [sequence, position]."""

    rows: np.ndarray  # [sequence, position], as they lie on disk
    row_numbers: Callable[[np.ndarray], np.ndarray]  # positions in the reading order -> rows
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, positions: slice) -> np.ndarray:
        return self.rows[self.row_numbers(np.arange(*positions.indices(self.length)))].astype(np.int64)


def mixed_order(first: int, available: int, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """A reading order of `available` rows from `first` on, mixed within each window: positions in it -> rows.

    A window's order depends on the seed, the window and how many rows it has. So as long as windows are complete, a
    short run reads a prefix of what a long one reads.
    """

    def order(window: int) -> np.ndarray:
        return np.random.default_rng([seed, window]).permutation(min(WINDOW, available - window * WINDOW))

    def row_numbers(positions: np.ndarray) -> np.ndarray:
        windows = positions // WINDOW
        orders = {w: order(w) for w in np.unique(windows).tolist()}
        return np.array(
            [first + w * WINDOW + orders[w][p % WINDOW] for w, p in zip(windows.tolist(), positions.tolist(), strict=True)],
            np.int64,
        )

    return row_numbers


@dataclass
class CacheState:
    """How far a source has been written: sequences, the documents they came from, and ids that do not fill a sequence yet."""

    sequences: int = 0
    documents: int = 0
    carry: list[int] = field(default_factory=list)
    exhausted: bool = False


@dataclass(frozen=True)
class TokenFile:
    """One source's sequences in a folder of the cache: tokens.bin, and state.json beside it."""

    folder: Path
    made_from: Mapping[str, Any]  # everything that the tokens depend on
    length: int  # tokens in a sequence
    dtype: np.dtype

    @property
    def path(self) -> Path:
        """The file of tokens."""
        return self.folder / "tokens.bin"

    def num_bytes(self, sequences: int) -> int:
        """The size of so many sequences."""
        return sequences * self.length * self.dtype.itemsize

    def read_state(self) -> CacheState:
        """The state in the folder, or an empty one where nothing has been written or tokens are missing."""
        try:
            values = json.loads((self.folder / "state.json").read_text())
        except FileNotFoundError:
            return CacheState()
        state = CacheState(values["sequences"], values["documents"], values["carry"], values["exhausted"])
        if state.sequences and (not self.path.exists() or self.path.stat().st_size < self.num_bytes(state.sequences)):
            return CacheState()
        return state

    def write_state(self, state: CacheState) -> None:
        """Replaces state.json."""
        replace_text(self.folder / "state.json", json.dumps({**vars(state), "made_from": self.made_from}, default=str))

    def append(
        self, state: CacheState, needed: int | None, documents: Iterable[np.ndarray], join: bool, show: Callable[[int], None]
    ) -> None:
        """Appends the documents' sequences until there are `needed` (None: all); advances `state` and writes it with them.

        join: as in cached_sequences. show: called with the number of sequences that have been written.
        """
        pending: list[np.ndarray] = []
        num_pending = 0  # sequences
        carry = np.array(state.carry, self.dtype)
        with self.path.open("ab") as file:
            file.truncate(self.num_bytes(state.sequences))

            def flush() -> None:
                nonlocal num_pending
                for rows in pending:
                    file.write(rows.tobytes())
                file.flush()
                os.fsync(file.fileno())
                pending.clear()
                num_pending, state.carry = 0, carry.tolist()
                self.write_state(state)
                show(state.sequences)

            for document in documents:
                ids = np.concatenate([carry, document.astype(self.dtype)]) if join else document.astype(self.dtype)
                full = len(ids) // self.length * self.length
                carry = ids[full:] if join else carry
                pending.append(ids[:full])
                state.documents += 1
                state.sequences += full // self.length
                num_pending += full // self.length
                if num_pending >= WRITE_EVERY or len(pending) >= 4096:
                    flush()
                if needed is not None and state.sequences >= needed:
                    break
            else:
                state.exhausted = True
            flush()


def cached_sequences(
    cache: Path,
    made_from: Mapping[str, Any],
    length: int,
    vocabulary: int,
    needed: int | None,
    documents: Callable[[int], Iterable[np.ndarray]],
    join: bool,
    label: str,
) -> np.ndarray:
    """The sequences of a source as a memory map [sequence, position], at least `needed` (None: all) where the source has so many.

    made_from: everything that the tokens depend on; names the folder. documents: (number to skip) -> the following documents' ids.
    join: documents are packed one after the other; otherwise each is cut by itself and its remainder dropped.
    A killed process leaves a state from which the next goes on; processes that need the same tokens wait for each other.
    """
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode()).hexdigest()[:16]
    folder = cache / key
    folder.mkdir(parents=True, exist_ok=True)
    tokens = TokenFile(folder, made_from, length, np.dtype(np.uint16 if vocabulary <= 2**16 else np.uint32))
    with FileLock(folder / "lock"):
        state = tokens.read_state()
        if not state.exhausted and (needed is None or state.sequences < needed):
            with progress(label, needed) as show:
                tokens.append(state, needed, documents(state.documents), join, show)
    if not state.sequences:
        return np.zeros((0, length), tokens.dtype)
    return np.memmap(tokens.path, tokens.dtype, "r", shape=(state.sequences, length))


@contextmanager
def progress(label: str, needed: int | None) -> Iterator[Callable[[int], None]]:
    """Shows how many sequences there are: a progress bar on a terminal, a line every few seconds elsewhere."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (SpinnerColumn(), TextColumn(label), MofNCompleteColumn(), TextColumn("sequences"), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=needed)
            yield lambda count: bar.update(task, completed=count)
        return
    last = time.monotonic()

    def show(count: int) -> None:
        nonlocal last
        if time.monotonic() - last > PLAIN_EVERY:
            last = time.monotonic()
            console.print(f"{label} {count:,}{f' of {needed:,}' if needed else ''} sequences", markup=False, highlight=False)

    yield show
