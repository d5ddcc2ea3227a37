"""The held-out sequences on disk: chosen once for the same data and settings, then read."""

import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from sae_transcoder.data.documents import Encoding
from sae_transcoder.data.heldout_documents import from_own_split, from_training_split
from sae_transcoder.data.token_cache import folder_of
from sae_transcoder.data.token_ids import Document
from sae_transcoder.process.atomic_files import replace_file
from sae_transcoder.process.progress import progress


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
    seed: int,
    how: Encoding,
    *,
    own_split: bool,
    label: str,
    in_all: Callable[[], int | None],
) -> StoredHeldOut:
    """At most `count` sequences of these documents, of which there are `in_all` (None: not known).

    made_from: everything that the documents depend on; how: they are encoded; own_split: whether nothing else of them is trained on.
    """
    folder = folder_of(cache, {**made_from, "held_out": count, "own_split": own_split})
    path = folder / "heldout.npz"
    with FileLock(folder / "lock"):
        try:
            with np.load(path, allow_pickle=False) as file:
                return StoredHeldOut(**{f.name: file[f.name] for f in fields(StoredHeldOut)})
        except (FileNotFoundError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
            pass  # not chosen yet, or its file was cut off
        choose = from_own_split if own_split else partial(from_training_split, in_all=in_all())
        with progress(f"{label}, to hold some out,", None, "documents") as show:
            heldout = choose(report_progress(documents, show), count, how.length, seed, how.step)
        stored = StoredHeldOut(
            rows=heldout.rows.astype(how.dtype),
            identities=np.array([document.identity for document in heldout.documents], np.uint64),
            parts=np.array([document.part for document in heldout.documents], np.int64),
            tokens=np.array(heldout.used, np.int64),
            sizes=np.array([document.size for document in heldout.documents], np.int64),
            divided=np.array(heldout.divided),
        )
        replace_file(path, lambda file: np.savez(file, **vars(stored)))
        return stored


def report_progress(documents: Iterable[Document], show: Callable[[int], None]) -> Iterator[Document]:
    """Yields the documents; calls `show` with how many there were."""
    for number, document in enumerate(documents, 1):
        show(number)
        yield document
