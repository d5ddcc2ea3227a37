"""Conversations as token ids, by the chat template of the model's tokenizer."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from sae_transcoder.config import Config, ConfigError, leaves_roles_out
from sae_transcoder.data.sequences import left_out

Messages = Sequence[dict[str, Any]]
OTHER = "\ue0f0\ue0f1\ue0f2"  # a content that no message has, and no template changes
MARKS_ASSISTANT = re.compile(r"\{%-?\s*generation\s*-?%\}")  # in templates that say themselves what the assistant wrote


def check_template(cfg: Config, tokenizer: Any) -> None:
    """Raises ConfigError for a tokenizer without a chat template that can be used."""
    fix = "choose a model that was trained on conversations, or give text_column"
    if not tokenizer.chat_template:
        raise ConfigError(f"messages_column={cfg.messages_column}: the tokenizer of {cfg.model_name} has no chat template; {fix}")
    try:
        template = tokenizer.get_chat_template()
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    except Exception as error:  # a template that is no Jinja; several of which none is the default
        raise ConfigError(
            f"messages_column={cfg.messages_column}: the chat template of {cfg.model_name} cannot be used ({error}); correct it, or {fix}"
        ) from error
    if leaves_roles_out(cfg) and not MARKS_ASSISTANT.search(template) and not tokenizer.is_fast:
        raise ConfigError(
            f"train_on=assistant: the tokenizer of {cfg.model_name} does not tell where in a text its tokens stand; set train_on=all"
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
    return np.where(of_assistant, ids, left_out(ids)) if leaves_roles_out(cfg) else ids


def check_messages(cfg: Config, messages: Any) -> None:
    """Raises ConfigError for a value that is no list of messages with a role and a text."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        wrong = type(messages).__name__ if not isinstance(messages, list) else "a list of other things"
        raise ConfigError(
            f"messages_column={cfg.messages_column}: {cfg.dataset_name} holds {wrong} there, not a list of messages; choose another column"
        )
    for number, message in enumerate(messages):
        kinds = {name: type(message.get(name)).__name__ for name in ("role", "content") if not isinstance(message.get(name), str)}
        if kinds:
            missing = [name for name in kinds if name not in message]
            wrong = (
                f"has no {' and no '.join(missing)} among {', '.join(message)}"
                if missing
                else "has " + " and ".join(f"a {name} of type {kind}" for name, kind in kinds.items())
            )
            raise ConfigError(
                f"messages_column={cfg.messages_column}: message {number} of a conversation of {cfg.dataset_name} {wrong}; "
                "each needs a role and a content that are texts"
            )


def encode(cfg: Config, messages: Messages, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """The ids of a conversation, and whether the assistant wrote each of them; each [position]."""
    options = dict(tokenize=True, return_dict=True)
    if not leaves_roles_out(cfg):
        ids = np.array(tokenizer.apply_chat_template(messages, **options)["input_ids"], np.int64)
        return ids, np.ones(len(ids), bool)
    if MARKS_ASSISTANT.search(tokenizer.get_chat_template()):
        encoded = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, **options)
        return np.array(encoded["input_ids"], np.int64), np.array(encoded["assistant_masks"], bool)
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = np.array(encoded["input_ids"], np.int64)
    starts, ends = np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2).T
    special = np.isin(ids, tokenizer.all_special_ids)
    blank = np.array([text[start:end].isspace() for start, end in zip(starts, ends, strict=True)], bool)
    of_assistant = np.zeros(len(ids), bool)
    for start, end in assistant_spans(cfg, messages, text, tokenizer):
        of_assistant |= (starts < end) & (ends > start)
        after = first = int((starts < end).sum())
        while after < len(ids) and blank[after] and not special[after]:
            after += 1
        if after < len(ids) and special[after]:  # it ends the turn
            of_assistant[first : after + 1] = True
    return ids, of_assistant


def assistant_spans(cfg: Config, messages: Messages, text: str, tokenizer: Any) -> list[tuple[int, int]]:
    """Where the assistant's messages stand in the conversation's text: (first character, the one after the last).

    Each is what changes in the text when the message has another content.
    """
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant" or not message["content"].strip():
            continue
        other = [*messages[:number], message | {"content": OTHER}, *messages[number + 1 :]]
        before, found, after = tokenizer.apply_chat_template(other, tokenize=False).partition(OTHER)
        end = len(text) - len(after)
        if not found or OTHER in after or end < len(before) or not (text.startswith(before) and text.endswith(after)):
            raise ConfigError(
                f"train_on=assistant: the chat template of {cfg.model_name} writes a message otherwise depending on what it says, so that its place "
                "is not known; set train_on=all, or give the tokenizer a template with {% generation %}"
            )
        spans.append((len(before), end))
    return spans
