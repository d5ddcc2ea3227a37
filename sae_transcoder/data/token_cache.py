"""Token sequences on disk: written once as documents are read, continued where a longer run needs more, read in a mixed order."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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
    places: Callable[[np.ndarray], np.ndarray]  # positions in reading order -> rows
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, part: slice) -> np.ndarray:
        return self.rows[self.places(np.arange(*part.indices(self.length)))].astype(np.int64)


def mixed(first: int, available: int, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """Reading order of the rows from `first` on: mixed within each window of the `available` ones.

    A window's order depends on the seed, the window and how many rows it has, so that as long as windows are complete a
    short run reads a prefix of what a long one reads.
    """

    def order(window: int) -> np.ndarray:
        return np.random.default_rng([seed, window]).permutation(min(WINDOW, available - window * WINDOW))

    def places(positions: np.ndarray) -> np.ndarray:
        windows = positions // WINDOW
        orders = {w: order(w) for w in np.unique(windows).tolist()}
        return np.array(
            [first + w * WINDOW + orders[w][p % WINDOW] for w, p in zip(windows.tolist(), positions.tolist(), strict=True)],
            np.int64,
        )

    return places


@dataclass
class State:
    """How far a source has been written: sequences, the documents they came from, and ids that do not fill a sequence yet."""

    sequences: int
    documents: int
    carry: list[int]
    exhausted: bool


def fill(
    cache: Path,
    made_from: Mapping[str, Any],
    length: int,
    vocabulary: int,
    needed: int | None,
    documents: Callable[[int], Iterable[np.ndarray]],
    join: bool,
    label: str,
) -> tuple[np.ndarray, bool]:
    """The sequences of a source as a memory map [sequence, position], at least `needed` (None: all) where the source has so many,
    and whether the source has no more.

    made_from: everything that the tokens depend on; names the folder. documents: (number to skip) -> the following documents' ids.
    join: documents are packed one after the other; otherwise each is cut by itself and its remainder dropped.
    A killed process leaves a state from which the next goes on; processes that need the same tokens wait for each other.
    """
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode()).hexdigest()[:16]
    folder = cache / key
    folder.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype(np.uint16 if vocabulary <= 2**16 else np.uint32)
    tokens = folder / "tokens.bin"
    with FileLock(folder / "lock"):
        state = read_state(folder)
        if state.sequences and (not tokens.exists() or tokens.stat().st_size < state.sequences * length * dtype.itemsize):
            state = State(0, 0, [], False)
        if not state.exhausted and (needed is None or state.sequences < needed):
            with tokens.open("ab") as file, progress(label, needed) as show:
                file.truncate(state.sequences * length * dtype.itemsize)
                write(file, folder, made_from, state, dtype, length, needed, documents(state.documents), join, show)
    if not state.sequences:
        return np.zeros((0, length), dtype), state.exhausted
    return np.memmap(tokens, dtype, "r", shape=(state.sequences, length)), state.exhausted


def write(
    file: Any, folder: Path, made_from: Mapping[str, Any], state: State, dtype: np.dtype, length: int, needed: int | None,
    documents: Iterable[np.ndarray], join: bool, show: Callable[[int], None],
) -> None:  # fmt: skip
    """Appends the documents' sequences to the open file until there are `needed`; advances `state` and keeps it beside the file."""
    pending: list[np.ndarray] = []
    carry = np.array(state.carry, dtype)
    held = 0

    def flush() -> None:
        nonlocal held
        for rows in pending:
            file.write(rows.tobytes())
        file.flush()
        os.fsync(file.fileno())
        pending.clear()
        held, state.carry = 0, carry.tolist()
        write_state(folder, made_from, state)
        show(state.sequences)

    for document in documents:
        ids = np.concatenate([carry, document.astype(dtype)]) if join else document.astype(dtype)
        full = len(ids) // length * length
        carry = ids[full:] if join else carry
        pending.append(ids[:full])
        state.documents += 1
        state.sequences += full // length
        held += full // length
        if held >= WRITE_EVERY or len(pending) >= 4096:
            flush()
        if needed is not None and state.sequences >= needed:
            break
    else:
        state.exhausted = True
    flush()


def read_state(folder: Path) -> State:
    """The state kept in the folder, that of nothing written where there is none."""
    try:
        values = json.loads((folder / "state.json").read_text())
    except FileNotFoundError:
        return State(0, 0, [], False)
    return State(values["sequences"], values["documents"], values["carry"], values["exhausted"])


def write_state(folder: Path, made_from: Mapping[str, Any], state: State) -> None:
    """Replaces state.json."""
    replace_text(folder / "state.json", json.dumps({**vars(state), "made_from": made_from}, default=str))


@contextmanager
def progress(label: str, needed: int | None) -> Iterator[Callable[[int], None]]:
    """Shows how many sequences there are: a line that moves on a terminal, now and then a line elsewhere."""
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
