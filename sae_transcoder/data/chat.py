"""Conversations as token ids, by the chat template of the model's tokenizer."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from sae_transcoder.config import Config, ConfigError, TrainOn
from sae_transcoder.data.sequences import left_out

Messages = Sequence[dict[str, Any]]
MARKS_ASSISTANT = re.compile(r"\{%-?\s*generation\s*-?%\}")  # in templates that say themselves what the assistant wrote


def check_template(cfg: Config, tokenizer: Any) -> None:
    """Raises ConfigError for a tokenizer without a chat template."""
    if not tokenizer.chat_template:
        raise ConfigError(
            f"messages_column={cfg.messages_column}: the tokenizer of {cfg.model_name} has no chat template; "
            "choose a model that was trained on conversations, or give text_column"
        )


def conversation_ids(cfg: Config, messages: Any, tokenizer: Any, begin: tuple[int, ...]) -> np.ndarray:
    """The ids of a conversation [position]; with train_on=assistant those of other positions are marked by `left_out`.

    begin: ids that stand before each sequence anyway; where the template begins with them too, they are left away.
    Raises ConfigError for a value that is no list of messages, and one that the template refuses.
    """
    check_messages(cfg, messages)
    try:
        ids, of_assistant = encode(cfg, messages, tokenizer)
    except ConfigError:
        raise
    except Exception as error:  # templates raise what they like
        raise ConfigError(
            f"messages_column={cfg.messages_column}: the chat template of {cfg.model_name} refuses a conversation with the roles "
            f"{', '.join(str(message.get('role')) for message in messages)} ({error}); remove such conversations"
        ) from error
    if begin and tuple(ids[: len(begin)]) == begin:
        ids, of_assistant = ids[len(begin) :], of_assistant[len(begin) :]
    return np.where(of_assistant, ids, left_out(ids)) if cfg.train_on == TrainOn.assistant else ids


def check_messages(cfg: Config, messages: Any) -> None:
    """Raises ConfigError for a value that is no list of messages with a role and a text."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        wrong = type(messages).__name__ if not isinstance(messages, list) else "a list of other things"
        raise ConfigError(
            f"messages_column={cfg.messages_column}: {cfg.dataset_name} holds {wrong} there, not a list of messages; choose another column"
        )
    for message in messages:
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise ConfigError(
                f"messages_column={cfg.messages_column}: {cfg.dataset_name} holds a message with the keys {', '.join(message)}; "
                "each needs a role and a content that are texts"
            )


def encode(cfg: Config, messages: Messages, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """The ids of a conversation, and whether the assistant wrote each of them; each [position]."""
    options = dict(tokenize=True, return_dict=True)
    if cfg.train_on == TrainOn.all:
        ids = np.array(tokenizer.apply_chat_template(messages, **options)["input_ids"], np.int64)
        return ids, np.ones(len(ids), bool)
    if MARKS_ASSISTANT.search(tokenizer.get_chat_template()):
        encoded = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, **options)
        return np.array(encoded["input_ids"], np.int64), np.array(encoded["assistant_masks"], bool)
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    starts, ends = np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2).T
    of_assistant = np.zeros(len(starts), bool)
    for start, end in assistant_spans(cfg, messages, text, tokenizer):
        inside = (starts < end) & (ends > start)
        after = int(inside.nonzero()[0].max(initial=-1)) + 1
        inside[after : after + 1] = True  # the token that ends the turn
        of_assistant |= inside
    return np.array(encoded["input_ids"], np.int64), of_assistant


def assistant_spans(cfg: Config, messages: Messages, text: str, tokenizer: Any) -> list[tuple[int, int]]:
    """Where the contents of the assistant's messages stand in the conversation's text: (first character, the one after the last)."""
    spans = []
    for number, message in enumerate(messages):
        content = message["content"].strip()
        if message["role"] != "assistant" or not content:
            continue
        before = tokenizer.apply_chat_template(messages[:number], tokenize=False, add_generation_prompt=True) if number else ""
        start = text.find(content, len(before)) if text.startswith(before) else -1
        if start < 0:
            raise ConfigError(
                f"train_on=assistant: the chat template of {cfg.model_name} does not write messages one after the other as they are, so their places "
                "are not known; set train_on=all, or give the tokenizer a template with {% generation %}"
            )
        spans.append((start, start + len(content)))
    return spans
