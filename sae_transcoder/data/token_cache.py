"""Token sequences on disk: written once as documents are read, extended when a longer run needs more."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from sae_transcoder.data.token_ids import Document
from sae_transcoder.process.atomic_files import replace_text
from sae_transcoder.process.progress import progress

WRITE_EVERY = 256  # sequences held in memory before they are written
RECORD = np.dtype([("identity", "<u8"), ("tokens", "<u4"), ("part", "<u2")])  # what is kept of a document, see Document


@dataclass
class CacheState:
    """How far a source has been written: sequences, the documents they came from, and ids that do not fill a sequence yet. `of_documents`: how
    many the source holds, None where that is not known."""

    sequences: int = 0
    documents: int = 0
    carry: list[int] = field(default_factory=list)
    exhausted: bool = False
    of_documents: int | None = None


@dataclass(frozen=True)
class TokenFile:
    """One source's sequences in a folder of the cache: tokens.bin, a RECORD of each document in documents.bin, and state.json."""

    folder: Path
    made_from: Mapping[str, Any]  # everything that the tokens depend on
    length: int  # tokens in a sequence
    dtype: np.dtype

    @property
    def path(self) -> Path:
        """The file of tokens."""
        return self.folder / "tokens.bin"

    @property
    def records_path(self) -> Path:
        """The file of documents."""
        return self.folder / "documents.bin"

    def num_bytes(self, sequences: int) -> int:
        """The size of so many sequences."""
        return sequences * self.length * self.dtype.itemsize

    def read_state(self) -> CacheState:
        """The state in the folder, or an empty one where nothing has been written, tokens are missing or the state's file is damaged."""
        try:
            values = json.loads((self.folder / "state.json").read_text())
            state = CacheState(
                int(values["sequences"]), int(values["documents"]), list(map(int, values["carry"])), bool(values["exhausted"]),
                values.get("of_documents"),  # which earlier versions did not write
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError):
            return CacheState()
        needed = {self.path: self.num_bytes(state.sequences), self.records_path: state.documents * RECORD.itemsize}
        if any(size and (not path.exists() or path.stat().st_size < size) for path, size in needed.items()):
            return CacheState()
        return state

    def write_state(self, state: CacheState) -> None:
        """Replaces state.json."""
        replace_text(self.folder / "state.json", json.dumps({**vars(state), "made_from": self.made_from}, default=str))

    def append(self, state: CacheState, needed: int | None, documents: Iterable[Document], show: Callable[[], None]) -> None:
        """Appends the documents' sequences until there are `needed` (None: all); advances `state` and writes it with them.

        show: called once some have been written.
        """
        pending: list[Document] = []
        written = state.sequences
        carry = np.array(state.carry, self.dtype)
        with self.path.open("ab") as file, self.records_path.open("ab") as records:
            file.truncate(self.num_bytes(state.sequences))
            records.truncate(state.documents * RECORD.itemsize)

            def flush() -> None:
                nonlocal carry, written
                ids = np.concatenate([carry, *(document.ids.astype(self.dtype) for document in pending)])
                full = len(ids) // self.length * self.length
                file.write(ids[:full].tobytes())
                records.write(np.array([(d.identity, len(d.ids), d.part) for d in pending], RECORD).tobytes())
                for each in (file, records):
                    each.flush()
                    os.fsync(each.fileno())
                pending.clear()
                carry = ids[full:]
                written, state.carry = state.sequences, carry.tolist()
                self.write_state(state)
                show()

            left_over = len(carry)
            for document in documents:
                pending.append(document)
                left_over += len(document.ids)
                state.documents += 1
                state.sequences += left_over // self.length
                left_over %= self.length
                if state.sequences - written >= WRITE_EVERY or len(pending) >= 4096:
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
    dtype: np.dtype,
    needed: int | None,
    documents: Callable[[int], Iterable[Document]],
    label: str,
    count: Callable[[], int | None],
) -> tuple[np.ndarray, np.ndarray, CacheState]:
    """The sequences of a source as a memory map [sequence, position], at least `needed` (None: all) where the source has so many, a RECORD
    of each document that they come from, at the end of some that they do not, and how far the source has been read.

    made_from: everything that the tokens depend on; names the folder. documents: (number to skip) -> the following documents, which are packed
    one after the other. count: how many there are, None where that is not known. A killed process leaves a state from which the next goes on;
    processes that need the same tokens wait for each other.
    """
    folder = folder_of(cache, made_from)
    tokens = TokenFile(folder, made_from, length, dtype)
    with FileLock(folder / "lock"):
        state = tokens.read_state()
        if not state.exhausted and state.of_documents is None and (of_documents := count()) is not None:
            state.of_documents = of_documents
            tokens.write_state(state)
        if not state.exhausted and (needed is None or state.sequences < needed):
            by_documents = needed is None and state.of_documents is not None
            total, unit = (state.of_documents, "documents") if by_documents else (needed, "sequences")
            with progress(label, total, unit) as show:
                # A long document may give more sequences than are needed.
                def show_state() -> None:
                    show(state.documents if by_documents else state.sequences if needed is None else min(state.sequences, needed))

                tokens.append(state, needed, documents(state.documents), show_state)
    records = np.fromfile(tokens.records_path, RECORD, state.documents) if state.documents else np.zeros(0, RECORD)
    if not state.sequences:
        return np.zeros((0, length), tokens.dtype), records, state
    return np.memmap(tokens.path, tokens.dtype, "r", shape=(state.sequences, length)), records, state


def folder_of(cache: Path, made_from: Mapping[str, Any]) -> Path:
    """The folder of what is made from these settings and files; made where it is not there."""
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode()).hexdigest()[:16]
    (cache / key).mkdir(parents=True, exist_ok=True)
    return cache / key


def id_format(vocabulary: int, *, marked: bool) -> np.dtype:
    """The number format in which ids below `vocabulary` are kept; marked: whether some are marked as left out."""
    return np.dtype(np.int32 if marked else np.uint16 if vocabulary <= 2**16 else np.uint32)
