"""The held-out sequences on disk: chosen once for the same data and settings, then read."""

import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from sae_transcoder.data.heldout_documents import from_own_split, from_training_split
from sae_transcoder.data.token_cache import folder_of, progress
from sae_transcoder.data.token_ids import Document


@dataclass(frozen=True)
class StoredHeldOut:
    """Held-out sequences and the documents that they come from."""

    rows: np.ndarray  # [sequence, position]
    identities: np.ndarray  # of the documents, see Document
    parts: np.ndarray  # of a mixture that the documents come from
    tokens: np.ndarray  # how many ids of each document are in `rows`
    sizes: np.ndarray  # how many ids each document has
    divided: np.ndarray  # scalar: whether there are too few documents to hold any out whole; then there are no rows


def cached_heldout(
    cache: Path,
    made_from: Mapping[str, Any],
    documents: Iterable[Document],
    count: int,
    length: int,
    seed: int,
    step: int,
    dtype: np.dtype,
    *,
    own_split: bool,
    label: str,
) -> StoredHeldOut:
    """At most `count` sequences of `length` ids of these documents.

    made_from: everything that the documents depend on; step: pieces of documents begin at multiples of it; own_split: whether nothing else of the
    documents is trained on.
    """
    folder = folder_of(cache, {**made_from, "held_out": count, "own_split": own_split})
    path = folder / "heldout.npz"
    with FileLock(folder / "lock"):
        try:
            with np.load(path, allow_pickle=False) as file:
                return StoredHeldOut(**{f.name: file[f.name] for f in fields(StoredHeldOut)})
        except (FileNotFoundError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
            pass  # not chosen yet, or its file was cut off
        choose = from_own_split if own_split else from_training_split
        with progress(f"{label}, to hold some out,", None, "documents") as show:
            heldout = choose(report_progress(documents, show), count, length, seed, step)
        stored = StoredHeldOut(
            rows=heldout.rows.astype(dtype),
            identities=np.array([document.identity for document in heldout.documents], np.uint64),
            parts=np.array([document.part for document in heldout.documents], np.int64),
            tokens=np.array(heldout.used, np.int64),
            sizes=np.array([document.size for document in heldout.documents], np.int64),
            divided=np.array(heldout.divided),
        )
        new_path = path.with_name(f".{path.name}.new")
        with new_path.open("wb") as file:
            np.savez(file, **vars(stored))
        new_path.replace(path)
        return stored


def report_progress(documents: Iterable[Document], show: Callable[[int], None]) -> Iterator[Document]:
    """Yields the documents; calls `show` with how many there were."""
    for number, document in enumerate(documents, 1):
        show(number)
        yield document
