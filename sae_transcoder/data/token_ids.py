"""The token ids of documents: tokenised text, or rows of ids, checked against the model's vocabulary."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from sae_transcoder.config import Config, ConfigError

TOKENIZE = 64  # documents at a time


def tokenize(cfg: Config, rows: Iterable[dict[str, Any]], tokenizer: Any) -> Iterator[np.ndarray]:
    """Yields each document's ids with the separator before them; a document without text yields no ids."""
    candidates = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.sep_token_id)
    separator = next((i for i in candidates if i is not None), None)
    if separator is None:
        raise ConfigError(
            f"model_name={cfg.model_name}: its tokenizer has no end, begin or separator token; use dataset=pretokenized"
        )
    rows = iter(rows)
    while batch := list(itertools.islice(rows, TOKENIZE)):
        texts = [row[cfg.text_column] for row in batch]
        no_text = next((t for t in texts if t is not None and not isinstance(t, str)), None)
        if no_text is not None:
            raise ConfigError(
                f"text_column={cfg.text_column}: {cfg.dataset_name} holds {type(no_text).__name__} there, not text; choose another column"
            )
        nonempty = [t for t in texts if t]
        ids = iter(
            tokenizer(nonempty, add_special_tokens=False, verbose=False, return_attention_mask=False)["input_ids"]
            if nonempty
            else []
        )
        for text in texts:
            yield np.array([separator, *next(ids)] if text else [], dtype=np.int64)


def check_ids(cfg: Config, documents: Iterable[np.ndarray], vocabulary: int) -> Iterator[np.ndarray]:
    """Yields the documents' ids unchanged. Raises ConfigError for an id of the tokenizer that the model lacks."""
    for ids in documents:
        if len(ids) and (largest := int(ids.max())) >= vocabulary:
            raise ConfigError(
                f"model_name={cfg.model_name}: its tokenizer gives the id {largest}, the model has the ids 0 to {vocabulary - 1}; "
                "choose a model whose tokenizer fits it"
            )
        yield ids


def row_ids(cfg: Config, rows: Iterable[dict[str, Any]], skip: int, vocabulary: int) -> Iterator[np.ndarray]:
    """Yields each row's ids. Raises ConfigError for a row that is no list of integers, or an id outside the vocabulary.

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
        yield values.astype(np.int64)


def unknown_id(cfg: Config, token_id: int, vocabulary: int) -> str:
    """The message for an id that the model does not have."""
    return (
        f"dataset_name={cfg.dataset_name}: holds the token id {token_id}, and model_name={cfg.model_name} has the ids 0 to {vocabulary - 1}; "
        "choose the model that it was tokenised for, or its text"
    )
