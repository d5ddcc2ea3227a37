"""Token sequences in their reading order, which mixes them within windows."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

WINDOW = 1024  # sequences among which the order is mixed, so that one long document does not fill a batch


def left_out(ids: np.ndarray) -> np.ndarray:
    """Marks ids whose positions are left out of training and evaluation, and removes the mark: the complement, which is below zero."""
    return ~ids


@dataclass(frozen=True)
class Sequences:
    """Token sequences on disk in reading order: `s[a:b]` is an int64 array [sequence, position], in which `left_out` marks ids."""

    rows: np.ndarray  # [sequence, position], as they lie on disk
    row_numbers: Callable[[np.ndarray], np.ndarray]  # positions in the reading order -> rows
    length: int
    begin: tuple[int, ...] = ()  # ids before each row

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, positions: slice) -> np.ndarray:
        rows = self.rows[self.row_numbers(np.arange(*positions.indices(self.length)))].astype(np.int64)
        if not self.begin:
            return rows
        return np.concatenate([np.tile(np.array(self.begin, np.int64), (len(rows), 1)), rows], axis=1)


def in_order(positions: np.ndarray) -> np.ndarray:
    """The reading order of rows as they lie on disk."""
    return positions


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
