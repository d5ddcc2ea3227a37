"""The documents of a split as token ids, in their shuffled order."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_transcoder.config import Config, has_stored_ids, leaves_roles_out
from sae_transcoder.data import token_ids
from sae_transcoder.data.mixture import draw_rows
from sae_transcoder.data.sequences import left_out
from sae_transcoder.data.special_tokens import SpecialTokens, special_tokens
from sae_transcoder.data.token_cache import id_format
from sae_transcoder.data.token_ids import Document


@dataclass(frozen=True)
class Encoding:
    """How rows become token ids."""

    tokenizer: Any  # of text; None: rows hold ids
    special: SpecialTokens
    vocabulary: int  # how many ids the model has
    length: int  # of a sequence without the begin tokens
    marked: bool  # whether `left_out` marks some of the ids

    @property
    def dtype(self) -> np.dtype:
        """The number format in which ids are kept."""
        return id_format(self.vocabulary, marked=self.marked)

    @property
    def step(self) -> int:
        """Where a piece of a document may begin: anywhere in a text, at a sequence's start in stored ids."""
        return self.length if self.tokenizer is None else 1

    @property
    def begin(self) -> tuple[int, ...]:
        """What stands at the start of each sequence; marked where other positions are."""
        ids = np.array(self.special.begin, np.int64)
        return tuple((left_out(ids) if self.marked else ids).tolist())


def encoding(cfg: Config, tokenizer: Callable[[], Any], vocabulary: int) -> Encoding:
    """How the settings have rows encoded. Raises ConfigError as special_tokens does."""
    if has_stored_ids(cfg):
        return Encoding(None, SpecialTokens(), vocabulary, cfg.max_seq_length, marked=False)
    loaded = tokenizer()
    special = special_tokens(cfg, loaded, vocabulary)
    return Encoding(loaded, special, vocabulary, cfg.max_seq_length - len(special.begin), marked=leaves_roles_out(cfg))


def documents(cfg: Config, split: str, encoding: Encoding, skip: int = 0) -> Iterator[Document]:
    """Yields the documents of a split but the first `skip`. Raises ConfigError for rows that are no text or no ids of the model."""
    drawn, again = itertools.tee(itertools.islice(draw_rows(cfg, split), skip, None))
    rows = (row for _, row in again)
    if encoding.tokenizer is None:
        ids = token_ids.row_ids(cfg, rows, skip, encoding.vocabulary)
    else:
        encode = token_ids.tokenize if cfg.messages_column is None else token_ids.conversations
        ids = token_ids.check_ids(cfg, encode(cfg, rows, encoding.tokenizer, encoding.special), encoding.vocabulary)
    for of_document in ids:
        part, _ = next(drawn)
        yield token_ids.document(of_document, part)
