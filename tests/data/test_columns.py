"""Only the named column decides what is read, whatever lies beside it, and its values arrive as they are stored."""

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.characters import settings
from helpers.token_data import hub_folder, id_rows, jsonl, refusal
from sae_transcoder.config import Config
from sae_transcoder.data import json_rows, sources
from sae_transcoder.data.hub_streams import open_stream
from sae_transcoder.data.local_files import open_files

TEXTS = [f"text {i}" for i in range(60)]
LOOK_LIKE_OTHERS = [
    "2024-01-01",
    "2024-01-01T00:00:00Z",
    "NA",
    "N/A",
    "None",
    "null",
    "nan",
    "<NA>",
    "5",
    "1.50",
    "true",
    "007",
    "",
]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "BLOCK", 100)
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)  # datasets waits 5 s after a stream of parquet


def values(cfg: Config, column: str = "text") -> list[Any]:
    return [row[column] for row in sources.read_rows(cfg, "train")]


def write_csv(path: Path, rows: list[list[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def others_null_at_first(folder: Path) -> None:
    jsonl(folder / "a.jsonl", [{"source": None if i < 50 else "web", "text": t} for i, t in enumerate(TEXTS)])


def others_change_type(folder: Path) -> None:
    jsonl(folder / "a.jsonl", [{"text": t, "id": i if i < 50 else f"x{i}", "m": [{"a": i}, i][i % 2]} for i, t in enumerate(TEXTS)])


def others_differ_by_shard(folder: Path) -> None:
    jsonl(folder / "a.jsonl", [{"text": t, "id": 1} for t in TEXTS[:30]])
    jsonl(folder / "b.jsonl", [{"id": "z", "extra": [1], "text": t} for t in TEXTS[30:]])


def others_differ_by_parquet_shard(folder: Path) -> None:
    pq.write_table(pa.table({"text": TEXTS[:30], "id": range(30)}), folder / "a.parquet", row_group_size=7)
    pq.write_table(pa.table({"score": ["x"] * 30, "id": TEXTS[30:], "text": TEXTS[30:]}), folder / "b.parquet")


def others_differ_by_csv_shard(folder: Path) -> None:
    write_csv(folder / "a.csv", [["id", "text"], *([i, t] for i, t in enumerate(TEXTS[:30]))])
    write_csv(folder / "b.csv", [["text", "id", "n"], *([t, "x", ""] for t in TEXTS[30:])])


def a_parquet_shard_is_empty(folder: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), folder / "a.parquet")
    pq.write_table(pa.table({"text": TEXTS}), folder / "b.parquet")


@pytest.mark.parametrize("kind", ["local_text", "hub"])
@pytest.mark.parametrize(
    "write",
    [
        others_null_at_first, others_change_type, others_differ_by_shard, others_differ_by_parquet_shard, others_differ_by_csv_shard,
        a_parquet_shard_is_empty,
    ],
)  # fmt: skip
def test_other_columns_do_not_decide_whether_data_can_be_read(tmp_path: Path, write: Any, kind: str) -> None:
    (tmp_path / "d").mkdir()
    write(tmp_path / "d")
    assert sorted(values(settings(tmp_path, dataset_kind=kind, dataset_name=str(tmp_path / "d")))) == sorted(TEXTS)


@pytest.mark.parametrize("kind", ["local_text", "hub"])
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_text_that_looks_like_something_else_stays_text(tmp_path: Path, kind: str, suffix: str) -> None:
    (tmp_path / "d").mkdir()
    name = tmp_path / f"d/a.{suffix}"
    if suffix == "csv":
        write_csv(name, [["id", "text"], *([i, t] for i, t in enumerate(LOOK_LIKE_OTHERS))])
    elif suffix == "jsonl":
        jsonl(name, [{"text": t} for t in LOOK_LIKE_OTHERS])
    else:
        pq.write_table(pa.table({"text": LOOK_LIKE_OTHERS}), name)
    got = values(settings(tmp_path, dataset_kind=kind, dataset_name=str(tmp_path / "d")))
    assert sorted(got) == sorted(LOOK_LIKE_OTHERS)


@pytest.mark.parametrize("kind", ["local_text", "hub"])
@pytest.mark.parametrize(
    "stored", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_parquet_text_is_read_however_it_is_stored(tmp_path: Path, kind: str, stored: pa.DataType) -> None:
    (tmp_path / "d").mkdir()
    pq.write_table(pa.table({"text": pa.array([*TEXTS, None], pa.string()).cast(stored)}), tmp_path / "d/a.parquet")
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "d/b.parquet")
    got = values(settings(tmp_path, dataset_kind=kind, dataset_name=str(tmp_path / "d")))
    assert sorted(got, key=str) == sorted([*TEXTS, *TEXTS, None], key=str)


@pytest.mark.parametrize(
    "stored", [[pa.list_(pa.uint16())], [pa.large_list(pa.int32())], [pa.list_(pa.uint16()), pa.large_list(pa.int64())]]
)
def test_parquet_ids_are_read_however_they_are_stored(tmp_path: Path, stored: list[pa.DataType]) -> None:
    (tmp_path / "d").mkdir()
    rows = id_rows(20)
    for i, arrow_type in enumerate(stored):
        pq.write_table(pa.table({"input_ids": pa.array(rows, arrow_type), "n": [str(i)] * 20}), tmp_path / f"d/{i}.parquet")
    cfg = settings(tmp_path, dataset_kind="pretokenized", dataset_name=str(tmp_path / "d"))
    assert sorted(values(cfg, "input_ids")) == sorted(rows * len(stored))


@pytest.mark.parametrize("content", [[1, 2], [1.5], [True], [b"x"], [{"a": "b"}], [["a"]]], ids=str)
def test_a_parquet_column_of_something_else_is_refused_with_its_type(tmp_path: Path, content: list[Any]) -> None:
    pq.write_table(pa.table({"title": ["x"] * len(content), "text": content}), tmp_path / "a.parquet")
    stored = pq.read_schema(tmp_path / "a.parquet").field("text").type
    message = refusal(settings(tmp_path, dataset_name=str(tmp_path / "a.parquet")))
    assert f"text_column=text: {tmp_path / 'a.parquet'} holds {stored} there, not text" in message
    assert "title, text" in message


@pytest.mark.parametrize("content", ["x", 5, [1.5]], ids=str)
def test_a_parquet_column_that_holds_no_ids_is_refused_with_its_type(tmp_path: Path, content: Any) -> None:
    pq.write_table(pa.table({"input_ids": [content]}), tmp_path / "a.parquet")
    stored = pq.read_schema(tmp_path / "a.parquet").field("input_ids").type
    message = refusal(settings(tmp_path, dataset_kind="pretokenized", dataset_name=str(tmp_path / "a.parquet")))
    assert f"holds {stored} there, not lists of token ids" in message


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_file_without_the_column_is_named_with_its_columns(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "d").mkdir()
    for name, column in (("a", "text"), ("b", "body")):
        path, rows = tmp_path / f"d/{name}.{suffix}", [{"id": "1", column: "x"}]
        if suffix == "csv":
            write_csv(path, [list(rows[0]), list(rows[0].values())])
        elif suffix == "jsonl":
            jsonl(path, rows)
        else:
            pq.write_table(pa.Table.from_pylist(rows), path)
    message = refusal(settings(tmp_path, dataset_name=str(tmp_path / "d")))
    assert f"text_column=text: {tmp_path / 'd'}/b.{suffix} has the columns id, body" in message


def test_a_row_without_the_column_has_no_text(tmp_path: Path) -> None:
    name = jsonl(tmp_path / "a.jsonl", [{"id": 1}, {"text": "x"}, {"id": 2, "text": None}])
    assert sorted(values(settings(tmp_path, dataset_name=name)), key=str) == [None, None, "x"]


def test_a_stream_without_the_column_is_given_up_before_its_first_file_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_transcoder.data.file_values.WITHOUT_COLUMN", 10)
    jsonl(tmp_path / "d/a.jsonl", [{"body": t} for t in TEXTS])
    with (tmp_path / "d/a.jsonl").open("a") as file:
        file.write("no JSON\n")
    message = refusal(settings(tmp_path, dataset_kind="hub", dataset_name=str(tmp_path / "d")))
    assert "the column body and no text" in message


@pytest.mark.parametrize("stored_format", ["pandas", "numpy", "torch", "arrow"])
@pytest.mark.parametrize("splits", [False, True])
def test_a_saved_set_is_read_as_plain_values_whatever_format_was_set(tmp_path: Path, stored_format: str, splits: bool) -> None:
    data: Any = datasets.Dataset.from_dict({"text": TEXTS, "input_ids": [[i, 2] for i in range(60)]})
    data = (datasets.DatasetDict({"train": data}) if splits else data).with_format(stored_format)
    data.save_to_disk(tmp_path / "saved")
    name = str(tmp_path / "saved")
    assert sorted(values(settings(tmp_path, dataset_name=name))) == sorted(TEXTS)
    ids = values(settings(tmp_path, dataset_kind="pretokenized", dataset_name=name), "input_ids")
    assert sorted(ids) == [[i, 2] for i in range(60)]


CHATS = [[{"role": "user", "content": "hi"}, {"role": "tool", "content": None, "calls": [1]}], [], [{"role": 5}], "none"]


def test_a_column_of_any_type_keeps_each_row_as_it_is(tmp_path: Path) -> None:
    name = jsonl(tmp_path / "d/a.jsonl", [{"messages": chat, "n": i} for i, chat in enumerate(CHATS)])
    assert open_files([Path(name)], "messages", None, tmp_path / "arrow").with_format(None)["messages"][:] != CHATS
    assert [row["messages"] for row in open_files([Path(name)], "messages", None, tmp_path / "arrow")] == CHATS
    assert [row["messages"] for row in open_stream(str(tmp_path / "d"), None, "train", "messages", None)] == CHATS
    pq.write_table(pa.table({"messages": [[{"role": "user"}]], "n": [1]}), tmp_path / "a.parquet")
    assert list(open_files([tmp_path / "a.parquet"], "messages", None, tmp_path / "arrow")) == [{"messages": [{"role": "user"}]}]


def test_the_types_on_a_data_sets_card_bind_no_other_column(tmp_path: Path) -> None:
    name = Path(hub_folder(tmp_path / "set"))
    features = [{"name": "text", "dtype": "string"}, {"name": "n", "list": "int64"}]
    name.joinpath("README.md").write_text(f"---\ndataset_info:\n  features: {json.dumps(features)}\n---\n")
    assert len(values(settings(tmp_path, dataset_kind="hub", dataset_name=str(name)))) == 400


def test_the_separator_on_a_data_sets_card_is_obeyed(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.csv").write_text("id;text\n1;NA, or not\n")
    (tmp_path / "d/README.md").write_text("---\nconfigs:\n- config_name: default\n  sep: ';'\n  data_files: '*.csv'\n---\n")
    assert values(settings(tmp_path, dataset_kind="hub", dataset_name=str(tmp_path / "d"))) == ["NA, or not"]


def test_options_on_a_data_sets_card_are_obeyed(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.json").write_text(json.dumps({"other": [{"text": "a"}], "rows": [{"text": "b"}, {"text": "c"}]}))
    (tmp_path / "d/README.md").write_text("---\nconfigs:\n- config_name: default\n  field: rows\n  data_files: '*.json'\n---\n")
    assert sorted(values(settings(tmp_path, dataset_kind="hub", dataset_name=str(tmp_path / "d")))) == ["b", "c"]


def test_a_stream_of_parquet_with_a_file_that_lacks_the_column_says_so(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "d/a.parquet")
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "d/b.parquet")
    assert "one of its Parquet files lacks the column" in refusal(
        settings(tmp_path, dataset_kind="hub", dataset_name=str(tmp_path / "d"))
    )
