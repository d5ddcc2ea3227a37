"""Coders are measured on other data than their run's: what the run says of its own data falls back, or is named with the fix."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.command_line import composed
from sae_transcoder.config import FIELDS, ConfigError
from sae_transcoder.evaluation.settings import evaluation_config

ROWS = [{"text": "a text", "id": 1}, {"text": "another", "id": 2}]
TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def own(*settings: str) -> dict[str, Any]:
    """The settings of a run on a local file whose text is in the column `content`."""
    usual = [] if any(setting.startswith("messages_column") for setting in settings) else ["text_column=content"]
    cfg = composed("model_type=sae", "model=demo", "dataset=local_text", "dataset_name=mine.jsonl", *usual, *settings)
    return {name: getattr(cfg, name) for name in FIELDS}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data sets, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    files = {
        "mine": [{"content": "my own"}],
        "other": ROWS,
        "late": [{"id": 0}, *ROWS],
        "both": [{"content": "a", "text": "b"}],
        "two": [{"title": "a", "body": "b"}],
        "talks": [{"messages": TALK}],
        "ids": [{"input_ids": [1, 2, 3]}],
    }
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "one.csv").write_text("body\na\n")
    return tmp_path


TEXT = "dataset=local_text"
FALLBACKS = [
    ([], ["dataset=demo"], {"text_column": "text"}),
    ([], ["dataset_name=other.jsonl"], {"text_column": "text"}),
    ([], ["dataset_name=late.jsonl"], {"text_column": "text"}),
    ([], ["dataset_name=one.csv"], {"text_column": "body"}),
    ([], ["dataset_name=both.jsonl"], {"text_column": "content"}),
    ([], ["dataset_name=two.jsonl", "text_column=body"], {"text_column": "body"}),
    ([], ["dataset_name=[other.jsonl,late.jsonl]"], {"text_column": "text"}),
    ([], ["dataset=pretokenized", "dataset_name=ids.jsonl"], {"text_column": "text", "tokens_column": "input_ids"}),
    (["special_tokens_in_text=parse"], ["dataset=pretokenized", "dataset_name=ids.jsonl"], {"special_tokens_in_text": "as_text"}),
    (["dataset_name=[mine.jsonl,x.jsonl]", "dataset_weights=[3,1]"], ["dataset_name=mine.jsonl"], {"dataset_weights": None}),
    (["messages_column=talk", "train_on=assistant"], ["dataset=demo"], {"messages_column": None, "train_on": "all"}),
    (
        ["messages_column=talk", "train_on=assistant"], ["dataset_name=other.jsonl"],
        {"messages_column": None, "train_on": "all", "text_column": "text"},
    ),
    (["messages_column=talk", "train_on=assistant"], ["dataset_name=talks.jsonl"], {"messages_column": "messages", "train_on": "assistant"}),
    ([], ["dataset_name=talks.jsonl", "messages_column=messages"], {"messages_column": "messages", "text_column": "text"}),
    (["dataset=hub", "dataset_config=mine", "dataset_split=sft", "eval_split=test", "shuffle_buffer=9", "text_column=text"],
     [TEXT, "dataset_name=other.jsonl"], {"dataset_config": None, "dataset_split": "train", "eval_split": None, "shuffle_buffer": 10_000}),
]  # fmt: skip


@pytest.mark.parametrize(("of_run", "overrides", "expected"), FALLBACKS)
def test_what_the_data_do_not_have_falls_back_and_is_told(
    data: Path, of_run: list[str], overrides: list[str], expected: dict[str, Any]
) -> None:
    base = own(*of_run)
    cfg, notes = evaluation_config(base, overrides)
    assert {name: getattr(cfg, name) for name in expected} == expected
    given = {override.split("=")[0] for override in overrides}
    changed = {name for name in expected if base[name] != expected[name] and name not in given}
    assert changed <= {note.split("=")[0] for note in notes}
    assert all(base[note.split("=")[0]] != getattr(cfg, note.split("=")[0]) for note in notes)


def test_the_runs_own_data_are_read_as_they_were(data: Path) -> None:
    base = own("special_tokens_in_text=parse")
    for overrides in ([], ["eval_samples=8"], ["dataset_name=mine.jsonl"], [f"dataset_name={data}/mine.jsonl"]):
        cfg, notes = evaluation_config(base, overrides)
        assert (cfg.text_column, cfg.special_tokens_in_text, notes) == ("content", "parse", [])


@pytest.mark.parametrize(
    ("of_run", "overrides", "part"),
    [
        ([], ["dataset_name=two.jsonl"], r"text_column=content: two.jsonl has the columns title, body and no content; set text_column .*run read"),
        ([], ["dataset_name=other.jsonl", "text_column=content"], "other.jsonl has the columns text, id and no content; set text_column"),
        ([], ["dataset_name=[other.jsonl,two.jsonl]"], "two.jsonl has the columns title, body and no text"),
        (["messages_column=talk"], ["dataset_name=two.jsonl"], "messages_column=talk: two.jsonl has the columns title, body and no talk"),
        (["messages_column=talk"], ["dataset_name=other.jsonl", "train_on=assistant"], "messages_column=talk: other.jsonl"),
        ([], ["dataset_name=nothing.jsonl"], "dataset_name=nothing.jsonl: no such file"),
        ([], ["dataset=demo", "text_column=content"], "text_column=content with dataset_kind=demo"),
    ],
)  # fmt: skip
def test_where_no_column_is_sure_to_be_meant_the_fix_is_named(
    data: Path, of_run: list[str], overrides: list[str], part: str
) -> None:
    with pytest.raises(ConfigError, match=part):
        evaluation_config(own(*of_run), overrides)
