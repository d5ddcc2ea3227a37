"""Conversations: the ids that the chat template gives, and which of them the assistant wrote."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.characters import settings
from helpers.tiny_models import demo_tokenizer
from helpers.token_data import jsonl, refusal, sets
from sae_transcoder.config import Config, ConfigError, TrainOn
from sae_transcoder.data.chat import conversation_ids

PLAIN = """{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>
{{ m['content'] | trim }}<end>
{% endfor %}{% if add_generation_prompt %}<assistant>
{% endif %}"""
MARKED = """{% for m in messages %}<{{ m['role'] }}>
{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<end>{% endgeneration %}{% else %}{{ m['content'] }}<end>{% endif %}
{% endfor %}"""
SYSTEM_LAST = "{% for m in messages | reverse %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
STRICT = "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}{{ m['content'] }}{% endfor %}"
TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "assistant or user?"},
    {"role": "assistant", "content": "user"},
    {"role": "user", "content": "import os"},
    {"role": "assistant", "content": "  def value(self): return self  "},
]


def tokenizer_with(template: str | None) -> Any:
    tokenizer = copy.deepcopy(demo_tokenizer())
    tokenizer.chat_template = template
    return tokenizer


def config(**given: Any) -> Config:
    return settings(Path("unused"), dataset_name="talks", messages_column="messages", **given)


def test_all_of_a_conversation_is_what_the_template_gives() -> None:
    tokenizer = tokenizer_with(PLAIN)
    ids = conversation_ids(config(), TALK, tokenizer, ())
    assert ids.tolist() == tokenizer.apply_chat_template(TALK, tokenize=True, return_dict=True)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id


def test_the_begin_token_is_not_there_twice() -> None:
    tokenizer = tokenizer_with(PLAIN)
    begin = (tokenizer.bos_token_id,)
    whole, without = (conversation_ids(config(), TALK, tokenizer, each) for each in ((), begin))
    assert whole.tolist() == [*begin, *without.tolist()]


@pytest.mark.parametrize(("template", "written"), [(PLAIN, "user< def value(self): return self<"), (MARKED, None)])
def test_only_what_the_assistant_wrote_is_kept(template: str, written: str | None) -> None:
    tokenizer = tokenizer_with(template)
    ids = conversation_ids(config(train_on=TrainOn.assistant), TALK, tokenizer, ())
    whole = conversation_ids(config(), TALK, tokenizer, ())
    np.testing.assert_array_equal(np.where(ids < 0, ~ids, ids), whole)
    kept = tokenizer.decode(ids[ids >= 0])
    if template == MARKED:
        assert kept.split() == [
            "user<end>",
            "def",
            "value(self):",
            "return",
            "self",
            "<end>",
        ]  # a token may hold the line's end too
    else:  # each content, and one token after it
        assert kept.replace("end>", "").replace("<", "").split() == ["userdef", "value(self):", "return", "self"]


def test_a_word_of_the_template_that_the_assistant_also_says_is_not_kept() -> None:
    tokenizer = tokenizer_with(PLAIN)
    talk = [{"role": "user", "content": "assistant"}, {"role": "assistant", "content": "assistant"}]
    ids = conversation_ids(config(train_on=TrainOn.assistant), talk, tokenizer, ())
    first_kept = int((ids >= 0).argmax())
    before = tokenizer.decode(~ids[:first_kept])
    assert before.endswith("<assistant>\n")
    assert before.count("assistant") == 2


def test_a_template_that_moves_messages_is_refused_where_the_places_are_needed() -> None:
    tokenizer = tokenizer_with(SYSTEM_LAST)
    assert len(conversation_ids(config(), TALK, tokenizer, ()))
    with pytest.raises(ConfigError, match=r"train_on=assistant: .* set train_on=all"):
        conversation_ids(config(train_on=TrainOn.assistant), TALK, tokenizer, ())


def test_a_template_that_refuses_is_told_with_the_roles() -> None:
    with pytest.raises(ConfigError, match=r"messages_column=messages: .* system, user, assistant.*no system role"):
        conversation_ids(config(), TALK, tokenizer_with(STRICT), ())


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("hello", "holds str there, not a list of messages"),
        ([1, 2], "a list of other things there"),
        ([{"from": "human", "value": "hi"}], "a message with the keys from, value; each needs a role and a content"),
        ([{"role": "user", "content": None}], "each needs a role and a content that are texts"),
    ],
)
def test_what_is_no_list_of_messages_is_refused(tmp_path: Path, value: Any, said: str) -> None:
    name = jsonl(tmp_path / "talks.jsonl", [{"messages": value}] * 30)
    cfg = settings(tmp_path, dataset_name=name, messages_column="messages")
    assert said in refusal(cfg, tokenizer_with(PLAIN), 4096)


def test_a_tokenizer_without_a_template_is_refused(tmp_path: Path) -> None:
    name = jsonl(tmp_path / "talks.jsonl", [{"messages": TALK}] * 30)
    cfg = settings(tmp_path, dataset_name=name, messages_column="messages")
    assert "has no chat template" in refusal(cfg, tokenizer_with(None), 4096)


def test_sequences_of_conversations_keep_their_marks_through_the_cache(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(PLAIN)
    talks = [[*TALK[:-1], {"role": "assistant", "content": f"answer {i}"}] for i in range(200)]
    name = jsonl(tmp_path / "talks.jsonl", [{"messages": talk, "id": i} for i, talk in enumerate(talks)])
    given = dict(
        dataset_name=name, messages_column="messages", max_samples=None, eval_samples=20, prepend_bos=True, max_seq_length=32
    )
    marked, whole = (
        sets(settings(tmp_path, **given, train_on=train_on), tokenizer, 4096) for train_on in (TrainOn.assistant, TrainOn.all)
    )
    assert whole.origin.separator == marked.origin.separator == ()
    for part in ("train", "heldout"):
        ids, clean = getattr(marked, part)[:], getattr(whole, part)[:]
        np.testing.assert_array_equal(np.where(ids < 0, ~ids, ids), clean)
        assert 0.1 < (ids >= 0).mean() < 0.9
        assert (ids[:, 0] == ~tokenizer.bos_token_id).all()
    assert len(list((tmp_path / "cache").glob("*/state.json"))) == 2
