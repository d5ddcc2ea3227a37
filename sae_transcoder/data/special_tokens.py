"""The special tokens that a run adds to texts: the begin token of each sequence, the separator after each document."""

from dataclasses import dataclass
from typing import Any

from sae_transcoder.config import Config, ConfigError

NO_SEPARATOR = "none"


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that stand around texts."""

    begin: tuple[int, ...] = ()  # at the start of each sequence
    separator: tuple[int, ...] = ()  # after each document


def special_tokens(cfg: Config, tokenizer: Any, vocabulary: int) -> SpecialTokens:
    """What `prepend_bos` and `separator` stand for with this tokenizer; vocabulary: how many ids the model has.

    Raises ConfigError where the tokenizer has no such token, the model no such id, or no text would fit into a sequence.
    """
    before, after = added_by(tokenizer)
    tokens = SpecialTokens(begin_ids(cfg, tokenizer, before), separator_ids(cfg, tokenizer, after))
    if beyond := [i for i in tokens.separator if cfg.separator is not None and i >= vocabulary]:
        raise ConfigError(f"separator={cfg.separator}: {cfg.model_name} has the ids 0 to {vocabulary - 1}; {beyond[0]} is none")
    if len(tokens.begin) >= cfg.max_seq_length:
        raise ConfigError(
            f"max_seq_length={cfg.max_seq_length}: the tokenizer of {cfg.model_name} begins each text with {len(tokens.begin)} tokens; "
            "raise it, or set prepend_bos=false"
        )
    return tokens


def added_by(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the tokenizer puts before and after a text when it encodes one."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    encoded = tokenizer("a")["input_ids"]
    for start in range(len(encoded) - len(plain) + 1):
        if encoded[start : start + len(plain)] == plain:
            return tuple(encoded[:start]), tuple(encoded[start + len(plain) :])
    return (), ()


def begin_ids(cfg: Config, tokenizer: Any, before: tuple[int, ...]) -> tuple[int, ...]:
    """The ids at the start of each sequence; before: what the tokenizer itself puts before a text."""
    if cfg.prepend_bos is None or (cfg.prepend_bos and before):
        return before
    if not cfg.prepend_bos:
        return ()
    begin = first_set(tokenizer.bos_token_id, tokenizer.cls_token_id)
    if begin is None:
        raise ConfigError(f"prepend_bos=True: the tokenizer of {cfg.model_name} has no begin token; leave prepend_bos out")
    return (begin,)


def separator_ids(cfg: Config, tokenizer: Any, after: tuple[int, ...]) -> tuple[int, ...]:
    """The ids after each document; after: what the tokenizer itself puts after a text."""
    if cfg.separator is not None:
        return () if cfg.separator == NO_SEPARATOR else (int(cfg.separator),)
    if cfg.messages_column is not None:
        return ()  # the chat template ends conversations
    if after:
        return after
    separator = first_set(tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.sep_token_id)
    if separator is None:
        raise ConfigError(
            f"separator=null: the tokenizer of {cfg.model_name} has no end, begin or separator token; set separator=none or a token id"
        )
    return (separator,)


def first_set(*ids: int | None) -> int | None:
    """The first id that is not None."""
    return next((i for i in ids if i is not None), None)
