"""The token ids of documents: tokenised text, or rows of ids, checked against the model's vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_transcoder.config import Config, ConfigError, SpecialTokensInText, leaves_roles_out
from sae_transcoder.data import chat
from sae_transcoder.data.sequences import left_out
from sae_transcoder.data.special_tokens import SpecialTokens

TOKENIZE, CHARACTERS = 64, 2**20  # documents at a time, or fewer where they have so many characters


@dataclass(frozen=True)
class Document:
    """A document's token ids."""

    ids: np.ndarray  # [position]; the separator at its end
    size: int  # how many ids the document has, of which `ids` may be a piece
    identity: int  # equal for documents that are equal to the letter, else almost never
    part: int = 0  # of a mixture


def document(ids: np.ndarray, part: int = 0) -> Document:
    """The document of these ids [position]."""
    unmarked = np.maximum(ids, left_out(ids))
    return Document(ids, len(ids), int.from_bytes(hashlib.blake2b(unmarked.tobytes(), digest_size=8).digest(), "little"), part)


def batches(texts: Iterable[Any]) -> Iterator[list[Any]]:
    """Yields the texts in lists that are tokenised at once: at most TOKENIZE, and no more once they have CHARACTERS."""
    batch: list[Any] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text) if isinstance(text, str) else 0
        if len(batch) == TOKENIZE or characters >= CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def tokenize(cfg: Config, rows: Iterable[dict[str, Any]], tokenizer: Any, special: SpecialTokens) -> Iterator[np.ndarray]:
    """Yields each document's ids with the separator after them; a document without text yields no ids."""
    split_special = {"split_special_tokens": True} if cfg.special_tokens_in_text == SpecialTokensInText.as_text else {}
    for texts in batches(row[cfg.text_column] for row in rows):
        no_text = next((t for t in texts if t is not None and not isinstance(t, str)), None)
        if no_text is not None:
            raise ConfigError(
                f"text_column={cfg.text_column}: {cfg.dataset_name} holds {type(no_text).__name__} there, not text; choose another column"
            )
        nonempty = [t for t in texts if t]
        ids = iter(
            tokenizer(nonempty, add_special_tokens=False, verbose=False, return_attention_mask=False, **split_special)["input_ids"]
            if nonempty
            else []
        )
        for text in texts:
            yield np.array([*next(ids), *special.separator] if text else [], dtype=np.int64)


def conversations(cfg: Config, rows: Iterable[dict[str, Any]], tokenizer: Any, special: SpecialTokens) -> Iterator[np.ndarray]:
    """Yields each conversation's ids with the separator after them; an empty one yields no ids."""
    chat.check_template(cfg, tokenizer)
    separator = np.array(special.separator, np.int64)
    separator = left_out(separator) if leaves_roles_out(cfg) else separator
    for row in rows:
        messages = row[str(cfg.messages_column)]
        if messages is None or messages == []:
            yield np.zeros(0, np.int64)
        else:
            yield np.concatenate([chat.conversation_ids(cfg, messages, tokenizer, special.begin), separator])


def check_ids(cfg: Config, documents: Iterable[np.ndarray], vocabulary: int) -> Iterator[np.ndarray]:
    """Yields the documents' ids unchanged. Raises ConfigError for an id of the tokenizer that the model lacks."""
    for ids in documents:
        if len(ids) and (largest := int(np.maximum(ids, left_out(ids)).max())) >= vocabulary:
            raise ConfigError(
                f"model_name={cfg.model_name}: its tokenizer gives the id {largest}, the model has the ids 0 to {vocabulary - 1}; "
                "choose a model whose tokenizer fits it"
            )
        yield ids


def row_ids(cfg: Config, rows: Iterable[dict[str, Any]], skip: int, vocabulary: int) -> Iterator[np.ndarray]:
    """Yields each row's ids, cut to full sequences. Raises ConfigError for a row that is no list of integers, or an id outside the vocabulary.

    skip: how many rows were left out before these.
    """
    for number, row in enumerate(rows, skip):
        try:
            values = np.asarray(row[cfg.tokens_column])
        except ValueError:  # lists of unequal lengths inside the row
            values = np.empty((0, 0))
        if values.ndim != 1 or (len(values) and values.dtype.kind not in "iu"):
            raise ConfigError(
                f"tokens_column={cfg.tokens_column}: row {number} of {cfg.dataset_name} (as shuffled) is not a list of token ids; choose another"
            )
        if len(values) and (values.max() >= vocabulary or values.min() < 0):
            raise ConfigError(unknown_id(cfg, int(values.max() if values.max() >= vocabulary else values.min()), vocabulary))
        yield values[: len(values) // cfg.max_seq_length * cfg.max_seq_length].astype(np.int64)


def unknown_id(cfg: Config, token_id: int, vocabulary: int) -> str:
    """The message for an id that the model does not have."""
    return (
        f"dataset_name={cfg.dataset_name}: holds the token id {token_id}, and model_name={cfg.model_name} has the ids 0 to {vocabulary - 1}; "
        "choose the model that it was tokenised for, or its text"
    )
