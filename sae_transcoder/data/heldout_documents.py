"""Which documents are held out, and how much of each: from as many documents as there are, up to one for each sequence."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sae_transcoder.data.token_ids import Document

AT_MOST = 10  # one document in so many is held out, where that suffices


@dataclass(frozen=True)
class HeldOut:
    """Sequences of documents that are held out whole."""

    rows: np.ndarray  # [sequence, position]
    documents: list[Document]  # those that the sequences come from, and those that are left out with them
    used: list[int]  # how many ids of each are in `rows`
    divided: bool = False  # there are too few documents to hold any out whole; then there are no rows


def from_own_split(documents: Iterable[Document], count: int, length: int, seed: int, step: int) -> HeldOut:
    """`count` sequences of `length` ids, or as many as there are, from a split that nothing is trained on.

    step: pieces of documents begin at multiples of it.
    """
    taken = take(documents, count, length, 1, seed, step)
    return cut(taken, count, length, seed, step)


def from_training_split(
    documents: Iterable[Document], count: int, length: int, seed: int, step: int, in_all: int | None = None
) -> HeldOut:
    """The same from the first documents of a split whose others are trained on. in_all: how many documents there are, None where that is
    not known; only where these are too few, or not known, are more read than are held out.

    At most a tenth of the documents are held out, unless they do not suffice. Where they would be more than half of the data, none is: `divided`.
    """
    remaining = iter(documents)
    taken = take(remaining, count, length, 1, seed, step)
    if in_all is not None and in_all >= AT_MOST * len(taken):
        return cut(taken, count, length, seed, step)
    others = [document.size for document in itertools.islice(remaining, (AT_MOST - 1) * len(taken))]
    if len(others) < (AT_MOST - 1) * len(taken):  # these are all
        sizes = [document.size for document in taken] + others
        least = max(1, len(sizes) // AT_MOST)
        taken = take(taken[least:], count, length, count, seed, step, already=taken[:least])
        if 2 * sum(sizes[: len(taken)]) > sum(sizes):
            return HeldOut(np.zeros((0, length), np.int64), [], [], divided=True)
    return cut(taken, count, length, seed, step)


def take(
    documents: Iterable[Document], count: int, length: int, share: int, seed: int, step: int, already: Sequence[Document] = ()
) -> list[Document]:
    """The first documents that fill `count` sequences where each gives at most `share` of them; all, where they do not suffice.

    Of each at most as many ids are kept as `count` sequences have. already: documents that come before these.
    """
    taken = list(already)
    filled = sum(min(len(document.ids), share * length) for document in taken)
    remaining = iter(documents)
    while filled < count * length and (document := next(remaining, None)) is not None:
        ids = piece(document.ids, count * length, step, [seed, len(taken)])
        taken.append(replace(document, ids=ids))
        filled += min(len(ids), share * length)
    return taken


def piece(ids: np.ndarray, size: int, step: int, seed: Sequence[int]) -> np.ndarray:
    """`size` ids in a row, or all; from a place that the seed decides, a multiple of `step`."""
    places = max(0, len(ids) - size) // step + 1
    start = int(np.random.default_rng(seed).integers(places)) * step
    return ids[start : start + size]


def shares(documents: Sequence[Document], count: int, length: int) -> list[int]:
    """How many sequences each document may give at most, so that together they give `count`, or all they have: as even as can be."""
    sizes = np.array([len(document.ids) for document in documents])
    share, filled = 0, 0
    while filled < min(count * length, int(sizes.sum())):
        share += 1
        filled = int(np.minimum(sizes, share * length).sum())
    given = [share] * len(documents)
    for number in range(len(documents) - 1, -1, -1):  # some of the last may give one sequence less
        less = min(sizes[number], share * length) - min(sizes[number], (share - 1) * length)
        if filled - less < count * length:
            break
        given[number], filled = share - 1, filled - less
    return given


def cut(documents: Sequence[Document], count: int, length: int, seed: int, step: int) -> HeldOut:
    """At most `count` sequences, from each document a piece of as many as `shares` says, at a place that the seed decides."""
    pieces = [
        piece(document.ids, share * length, step, [seed, number, 1])
        for number, (document, share) in enumerate(zip(documents, shares(documents, count, length), strict=True))
    ]
    stream = np.concatenate(pieces) if pieces else np.zeros(0, np.int64)
    num_rows = min(count, len(stream) // length)
    ends = np.minimum(np.cumsum([len(each) for each in pieces]), num_rows * length)
    return HeldOut(stream[: num_rows * length].reshape(num_rows, length), list(documents), np.diff(ends, prepend=0).tolist())
