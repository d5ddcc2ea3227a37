"""The documents of a split as token ids, in their shuffled order."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sae_transcoder.config import Config, DatasetKind
from sae_transcoder.data import token_ids
from sae_transcoder.data.mixture import draw_rows
from sae_transcoder.data.special_tokens import SpecialTokens, special_tokens
from sae_transcoder.data.token_ids import Document


@dataclass(frozen=True)
class Encoding:
    """How rows become token ids."""

    tokenizer: Callable[[], Any] | None  # of text; None: rows hold ids
    special: SpecialTokens
    vocabulary: int  # how many ids the model has
    length: int  # of a sequence without the begin tokens


def encoding(cfg: Config, tokenizer: Callable[[], Any], vocabulary: int) -> Encoding:
    """How the settings have rows encoded. Raises ConfigError as special_tokens does."""
    if cfg.dataset_kind in (DatasetKind.pretokenized, DatasetKind.memmap):
        return Encoding(None, SpecialTokens(), vocabulary, cfg.max_seq_length)
    special = special_tokens(cfg, tokenizer(), vocabulary)
    return Encoding(tokenizer, special, vocabulary, cfg.max_seq_length - len(special.begin))


def documents(cfg: Config, split: str, encoding: Encoding, skip: int = 0) -> Iterator[Document]:
    """Yields the documents of a split but the first `skip`. Raises ConfigError for rows that are no text or no ids of the model."""
    drawn, again = itertools.tee(itertools.islice(draw_rows(cfg, split), skip, None))
    rows = (row for _, row in again)
    if encoding.tokenizer is None:
        ids = token_ids.row_ids(cfg, rows, skip, encoding.vocabulary)
    else:
        tokenizer = encoding.tokenizer()
        encoded = token_ids.tokenize(cfg, rows, tokenizer, encoding.special.separator)
        ids = token_ids.check_ids(cfg, encoded, encoding.vocabulary)
    for of_document in ids:
        part, _ = next(drawn)
        yield token_ids.document(of_document, part)
