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
BY_CONTENT = "{{ messages[-1]['content'] | length }}{% for m in messages %}# {{ m['content'] }}\n{% endfor %}"
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


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_only_what_the_assistant_wrote_is_kept(template: str) -> None:
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
    else:
        assert kept == "userdef value(self): return self"


@pytest.mark.parametrize("content", ["A", "assistant", "user", "  spaced  ", "multi\nline"])
@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['role'] | capitalize }}: {{ m['content'] }}<|endoftext|>\n{% endfor %}",
        "{% for m in messages %}# {{ m['role'] }}\n{{ m['content'] }} <|endoftext|>{% endfor %}",
        "You are a helpful assistant user A. {% for m in messages %}[{{ m['content'] | trim }}]{% endfor %}",
        "{% for m in messages %}{{ m['role'] }} {{ m['content'] | upper }}<|endoftext|>{% endfor %}",
    ],
)
def test_the_place_of_a_message_is_what_changes_with_it(template: str, content: str) -> None:
    tokenizer = tokenizer_with(template)
    talk = [
        {"role": "user", "content": f"say {content}"},
        {"role": "assistant", "content": content},
        {"role": "user", "content": content},
    ]
    ids = conversation_ids(config(train_on=TrainOn.assistant), talk, tokenizer, ())
    kept = ids >= 0
    runs = np.flatnonzero(np.diff(kept.astype(int), prepend=0) == 1)
    assert len(runs) == 1, "one stretch of the conversation"
    wanted = content.upper() if "upper" in template else content
    ended = "<|endoftext|>" in template
    assert tokenizer.decode(ids[kept]).strip(" \n[").removesuffix("<|endoftext|>").strip(" \n]:") == wanted.strip()
    assert (ids[kept][-1] == tokenizer.eos_token_id) == ended
    before, after = tokenizer.decode(~ids[: runs[0]]), tokenizer.decode(~ids[runs[0] + kept.sum() :])
    assert (content.upper() if "upper" in template else content.strip()) in before
    assert (content.upper() if "upper" in template else content.strip()) in after


def test_a_word_of_the_template_that_the_assistant_also_says_is_not_kept() -> None:
    tokenizer = tokenizer_with(PLAIN)
    talk = [{"role": "user", "content": "assistant"}, {"role": "assistant", "content": "assistant"}]
    ids = conversation_ids(config(train_on=TrainOn.assistant), talk, tokenizer, ())
    first_kept = int((ids >= 0).argmax())
    before = tokenizer.decode(~ids[:first_kept])
    assert before.endswith("<assistant>\n")
    assert before.count("assistant") == 2


def test_a_template_that_writes_messages_by_what_they_say_is_refused_where_their_places_are_needed() -> None:
    tokenizer = tokenizer_with(BY_CONTENT)
    assert len(conversation_ids(config(), TALK, tokenizer, ()))
    with pytest.raises(ConfigError, match=r"train_on=assistant: .* set train_on=all"):
        conversation_ids(config(train_on=TrainOn.assistant), TALK, tokenizer, ())


def test_a_template_that_refuses_is_told_with_the_roles() -> None:
    with pytest.raises(ConfigError, match=r"messages_column=messages: .* system, user, assistant.*no system role"):
        conversation_ids(config(), TALK, tokenizer_with(STRICT), ())


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}{{ m['content'] }}", "cannot be used"),
        ({"a": "{{ messages }}", "b": "{{ messages }}"}, "cannot be used"),
    ],
)
def test_a_template_that_is_none_is_refused_as_such(tmp_path: Path, template: Any, said: str) -> None:
    name = jsonl(tmp_path / "talks.jsonl", [{"messages": TALK}] * 30)
    assert said in refusal(settings(tmp_path, dataset_name=name, messages_column="messages"), tokenizer_with(template), 4096)


def test_conversations_in_which_no_assistant_speaks_are_refused_where_its_words_are_needed(tmp_path: Path) -> None:
    name = jsonl(tmp_path / "talks.jsonl", [{"messages": [{"role": "model", "content": "def value(self): return 1"}]}] * 60)
    cfg = settings(tmp_path, dataset_name=name, messages_column="messages", train_on=TrainOn.assistant)
    assert "no position of a message whose role is assistant" in refusal(cfg, tokenizer_with(PLAIN), 4096)


def test_a_changed_template_file_is_read_anew(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/tokenizer.json").write_text("the tokenizer")
    name = jsonl(tmp_path / "talks.jsonl", [{"messages": TALK}] * 60)
    cfg = settings(tmp_path, dataset_name=name, messages_column="messages", model_name=str(tmp_path / "m"))
    rows = []
    for template in (PLAIN, BY_CONTENT):
        (tmp_path / "m/chat_template.jinja").write_text(template)
        rows.append(sets(cfg, tokenizer_with(template), 4096).train[:])
    assert not np.array_equal(rows[0], rows[1][: len(rows[0])])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("hello", "holds str there, not a list of messages"),
        ([1, 2], "a list of other things there"),
        ([{"from": "human", "value": "hi"}], "has no role and no content among from, value; each needs a role and a content"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": None}], "message 1 of a conversation of"),
        (
            [{"role": "user", "content": [{"text": "a"}]}],
            "has a content of type list; each needs a role and a content that are texts",
        ),
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
        assert 0.05 < (ids >= 0).mean() < 0.9
        assert (ids[:, 0] == ~tokenizer.bos_token_id).all()
    assert len(list((tmp_path / "cache").glob("*/state.json"))) == 2
