"""How each kind of local file is read, and what is said of one that is broken or empty."""

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from helpers.characters import settings
from helpers.token_data import documents, jsonl, refusal
from sae_transcoder.data import json_rows, sources

DATA = [{"text": "x", "n": 1}, {"text": "y", "n": "s"}]


def written(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def texts(path: Path, **given: Any) -> list[str]:
    """The texts in the file, sorted."""
    return sorted(row["text"] for row in sources.read_rows(settings(path.parent, dataset_name=str(path), **given), "train"))


def refused(path: Path, content: str | bytes, **given: Any) -> str:
    """The message for a file of this content, which names the file."""
    message = refusal(settings(path.parent, dataset_name=written(path, content), **given))
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize(
    "content",
    [
        '{"text": "x"}\n{"text": "y"}\n', '{"text": "x"}\r\n\r\n \n{"text": "y"}', json.dumps(DATA), "\n " + json.dumps(DATA, indent=1),
        '["x", "y"]', '\ufeff{"text": "x"}\n{"text": "y"}', "\ufeff" + json.dumps(DATA),
    ],
)  # fmt: skip
def test_json_may_be_lines_or_one_array(tmp_path: Path, suffix: str, content: str) -> None:
    written(tmp_path / f"a.{suffix}", content)
    assert texts(tmp_path / f"a.{suffix}") == ["x", "y"]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "content",
    [
        {"version": 1, "data": DATA}, {"data": DATA, "tags": ["a", "b"]}, {"text": ["x", "y"], "n": [1, 2]},
        {"text": {"0": "x", "1": "y"}, "n": {"0": 1, "1": 2}},
    ],
)  # fmt: skip
def test_a_json_file_may_be_an_object_that_holds_the_rows(tmp_path: Path, content: Any, indent: int | None) -> None:
    written(tmp_path / "a.json", json.dumps(content, indent=indent) + "\n")
    assert texts(tmp_path / "a.json") == ["x", "y"]


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_file_may_be_one_row(tmp_path: Path, indent: int | None) -> None:
    written(tmp_path / "a.json", json.dumps({"text": "x", "tags": [{"a": 1}]}, indent=indent))
    assert texts(tmp_path / "a.json") == ["x"]
    written(tmp_path / "ids.json", json.dumps({"input_ids": [1, 2, 3]}, indent=indent))
    cfg = settings(tmp_path, dataset_kind="pretokenized", dataset_name=str(tmp_path / "ids.json"))
    assert list(sources.read_rows(cfg, "train")) == [{"input_ids": [1, 2, 3]}]


@pytest.mark.parametrize("block", [1, 7, 100, 10**6])
def test_json_lines_are_whole_wherever_a_block_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(json_rows, "BLOCK", block)
    expected = [*documents(20), "é\u2028\x85 \r"]
    written(tmp_path / "a.jsonl", "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in expected))
    assert texts(tmp_path / "a.jsonl") == sorted(expected)
    written(tmp_path / "a.json", json.dumps({"data": [{"text": t} for t in expected]}) + "\n")
    assert texts(tmp_path / "a.json") == sorted(expected)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "x"}\n\n{"text": "y\n{"text": "z"}\n', "line 3: JSON parse error"),
        ('{"text": "x', "line 1: JSON parse error"),
        ('{"text": "x"}\n[1]\n', "line 2: list instead of an object"),
        ('"x"\n', "line 1: str instead of an object"),
        ('{"text": "x"}\n5\n', "line 2: int instead of an object"),
        ("[1, 2]", "row 1: int instead of an object"),
        ('[{"text": "x"},\n\n oh]', "line 3: JSON parse error"),
        ('{"text": ' + "[" * 100_000, "line 1: JSON parse error"),
        ('{"text": "x"}\n{"text": 5}\n', "line 2, holds int there, not text"),
        ('{"text": {"a": "x"}}\n{"text": "x"}\n', "line 1, holds dict there, not text"),
        ('{"text": "x"}\n{"text": "\\ud83d"}\n', "line 2, holds half of a character"),
        (b'{"text": "x"}\n{"text": "\xff"}\n', "line 2, byte 11 of it: 0xff is not UTF-8"),
    ],
)
def test_a_broken_line_of_json_is_refused_with_its_number(tmp_path: Path, content: str | bytes, said: str) -> None:
    assert said in refused(tmp_path / "a.jsonl", content)


def test_a_broken_json_file_is_refused_with_the_line(tmp_path: Path) -> None:
    assert "line 4: JSON parse error" in refused(tmp_path / "a.json", '{\n "data": [\n {"text": \n}')
    several = json.dumps({"train": DATA, "test": DATA})
    assert "has the columns train, test and no text" in refused(tmp_path / "b.json", several)


@pytest.mark.parametrize("ids", ["[1, true]", "[1, 99999999999999999999]", "null", "{}"])
def test_a_line_without_ids_is_refused_with_its_number(tmp_path: Path, ids: str) -> None:
    content = f'{{"input_ids": [1]}}\n{{"input_ids": {ids}}}\n'
    assert "line 2, is not a list of token ids" in refused(tmp_path / "a.jsonl", content, dataset_kind="pretokenized")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('id,text\r\n1,"a\r\nb"\r\n\r\n2,"c ""d"", e"\r\n', ["a\r\nb", 'c "d", e']),
        ("\ufefftext,id\nx,1\n", ["x"]),
        (",text\n0,x\n1,y\n", ["x", "y"]),
        ('text\nx\n"' + "y" * 200_000 + '"\n', ["x", "y" * 200_000]),
        ("text,n\rx,1\ry,2\r", ["x", "y"]),
        ("text\nx\n  \n\ny", ["x", "y"]),
    ],
)
def test_csv_fields_arrive_as_they_are_written(tmp_path: Path, content: str, expected: list[str]) -> None:
    written(tmp_path / "a.csv", content)
    assert texts(tmp_path / "a.csv") == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('id,text\n1,"a\nb"\n2,c,en\n', "line 4: the row has 3 fields, and the header 2 (the columns id, text)"),
        ("id,text\n\n1\n", "line 3: the row has 1 field, and the header 2"),
        ("text\na, b\n", "line 2: the row has 2 fields, and the header 1 (the column text)"),
        ("id;text\n1;a\n", "has the column id;text and no text"),
        ('id,text\n1,"a"b\n', "line 2: CSV parse error"),
        ('id,text\n1,a\n2,"b\n3,c\n', "line 3: CSV parse error"),
        (b"text\nx\n\xe9t\xe9\n", "line 3, byte 1 of it: 0xe9 is not UTF-8"),
    ],
)
def test_a_broken_row_of_csv_is_refused_with_its_line(tmp_path: Path, content: str | bytes, said: str) -> None:
    assert said in refused(tmp_path / "a.csv", content)


def test_a_text_file_is_read_without_the_mark_of_utf_8_and_refused_in_another_encoding(tmp_path: Path) -> None:
    written(tmp_path / "a.txt", "\ufeffa\r\nb\rc\n")
    assert texts(tmp_path / "a.txt") == ["a\nb\nc\n"]
    assert "line 2, byte 3 of it: 0xff is not UTF-8" in refused(tmp_path / "b.txt", b"x\nab\xff\n")
    assert "line 1, byte 1 of it: 0xff is not UTF-8" in refused(tmp_path / "c.txt", "abc".encode("utf-16"))
    assert "text_column=body" in refused(tmp_path / "d.txt", "x", text_column="body")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", ""), ("a.jsonl", "\n \r\n\n"), ("a.jsonl", '{"text": ""}\n{"text": null}\n'), ("a.json", ""), ("a.json", "[]"),
        ("a.csv", ""), ("a.csv", "id,text\n"), ("a.csv", "\n\n"), ("a.csv", 'id,text\n1,""\n'), ("a.txt", ""), ("a.txt", "\n \n"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["local_text", "hub"])
def test_data_without_any_document_is_called_empty(tmp_path: Path, name: str, content: str | bytes, kind: str) -> None:
    (tmp_path / "d").mkdir()
    written(tmp_path / "d" / name, content)
    message = refusal(settings(tmp_path, dataset_kind=kind, dataset_name=str(tmp_path / "d")))
    assert message.startswith(f"dataset_name={tmp_path / 'd'}: no document in it")


def test_an_empty_file_beside_others_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    written(tmp_path / "d/a.jsonl", "")
    jsonl(tmp_path / "d/b.jsonl", DATA)
    assert texts(tmp_path / "d") == ["x", "y"]


@pytest.mark.parametrize("content", [b"", b"PAR1 cut", b"no parquet at all"])
def test_a_broken_parquet_file_is_named(tmp_path: Path, content: bytes) -> None:
    assert "cannot be read as Parquet" in refused(tmp_path / "a.parquet", content)


COMPRESS = {
    "gz": gzip.compress, "bz2": bz2.compress, "zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
    "lz4": lambda data: pa.compress(data, codec="lz4", asbytes=True),
}  # fmt: skip


@pytest.mark.parametrize("compression", list(COMPRESS))
@pytest.mark.parametrize(
    ("suffix", "parts"),
    [("jsonl", ['{"text": "x"}\n', '{"text": "y"}\n']), ("csv", ["text\nx\n", "y\n"]), ("json", ['["x",', '"y"]'])],
)
def test_compressed_files_are_read_to_the_end_of_all_their_parts(
    tmp_path: Path, suffix: str, parts: list[str], compression: str
) -> None:
    path = tmp_path / f"a.{suffix}.{compression}"
    written(path, b"".join(COMPRESS[compression](part.encode()) for part in parts))
    assert texts(path) == ["x", "y"]


def test_a_compressed_file_that_is_cut_or_something_else_is_refused(tmp_path: Path) -> None:
    content = b'{"text": "x"}\n' * 1000
    assert "cannot be read" in refused(tmp_path / "a.jsonl.gz", gzip.compress(content)[:-20])
    assert "cannot be read" in refused(tmp_path / "b.jsonl.gz", content)
    assert ".parquet.gz" in refused(tmp_path / "c.parquet.gz", content)


def test_compressed_and_plain_files_in_one_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for suffix, data in (("jsonl", b'{"text": "x"}'), ("jsonl.gz", gzip.compress(b'{"text": "x"}'))):
        written(tmp_path / f"d/a.{suffix}", data)
    assert ".jsonl, .jsonl.gz" in refusal(settings(tmp_path, dataset_name=str(tmp_path / "d")))


def test_a_file_that_changes_is_read_anew(tmp_path: Path) -> None:
    for content in ("x", "yy"):
        jsonl(tmp_path / "a.jsonl", [{"text": content}])
        assert texts(tmp_path / "a.jsonl") == [content]
