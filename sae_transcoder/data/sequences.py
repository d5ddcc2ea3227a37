"""Token sequences in their reading order, which mixes them within windows."""

from collections.abc import Callable
from dataclasses import dataclass, field

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
    document_ends: np.ndarray = field(
        default_factory=lambda: np.zeros(0, np.int64)
    )  # where documents end among the ids of all rows

    def __len__(self) -> int:
        return self.length

    @property
    def width(self) -> int:
        """Positions in a sequence."""
        return len(self.begin) + self.rows.shape[1]

    def __getitem__(self, positions: slice) -> np.ndarray:
        return self.at(np.arange(*positions.indices(self.length)))

    def at(self, positions: np.ndarray) -> np.ndarray:
        """The sequences [sequence, position] at these positions of the reading order."""
        rows = self.rows[self.row_numbers(positions)].astype(np.int64)
        if not self.begin:
            return rows
        return np.concatenate([np.tile(np.array(self.begin, np.int64), (len(rows), 1)), rows], axis=1)

    def documents(self, positions: np.ndarray) -> np.ndarray:
        """The number of the document that each id of these sequences is of [sequence, position]; ids before a row count to its first document.

        Where documents are not known, as in a file of ids, each row is one.
        """
        numbers, length = self.row_numbers(positions)[:, None], self.rows.shape[1]
        if not len(self.document_ends):
            return np.repeat(numbers, length + len(self.begin), axis=1)
        places = numbers * length + np.maximum(np.arange(-len(self.begin), length), 0)
        return np.searchsorted(self.document_ends, places, side="right")


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
