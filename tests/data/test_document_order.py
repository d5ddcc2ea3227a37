"""The order of documents: what datasets' own loaders and shuffle give, so that a run goes on along the order in which it began."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.characters import SEED, settings
from helpers.token_data import documents, id_rows, jsonl
from sae_transcoder.data import sources

LOADERS = {"jsonl": "json", "jsonl.gz": "json", "json": "json", "csv": "csv", "parquet": "parquet", "txt": "text"}


@pytest.fixture(autouse=True)
def _no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)  # datasets waits 5 s after a stream of parquet


def write(path: Path, texts: list[str]) -> None:
    """One file of the kind that its name says."""
    rows = [{"n": i, "text": t} for i, t in enumerate(texts)]
    suffix = path.name.partition(".")[2]
    if suffix == "csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["n", "text"], *(list(row.values()) for row in rows)])
    elif suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=23)
    elif suffix == "json":
        path.write_text(json.dumps(rows))
    elif suffix == "txt":
        path.write_text(texts[0])
    else:
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(lines) if suffix.endswith("gz") else lines)


def shards(folder: Path, suffix: str, count: int) -> list[str]:
    """The files of a data set of 400 documents, or of one a file."""
    folder.mkdir()
    texts = [t.replace("\n", " ") + "\n“é”, x" for t in documents()]
    for i in range(count):
        write(folder / f"train-{i:02}.{suffix}", texts[i::count])
    return sorted(map(str, folder.iterdir()))


def read(cfg: Any, column: str = "text") -> list[Any]:
    return [row[column] for row in sources.read_rows(cfg, "train")]


@pytest.mark.parametrize("suffix", list(LOADERS))
@pytest.mark.parametrize("count", [1, 3])
def test_local_files_are_read_in_the_order_of_datasets(tmp_path: Path, suffix: str, count: int) -> None:
    files = shards(tmp_path / "d", suffix, count * 10 if suffix == "txt" else count)
    options = {"sample_by": "document"} if suffix == "txt" else {}
    rows = datasets.load_dataset(
        LOADERS[suffix], data_files={"train": files}, split="train", cache_dir=str(tmp_path / "theirs"), **options
    )
    expected = rows.shuffle(seed=SEED, keep_in_memory=True)["text"][:]
    for _ in range(2):  # the second time from the Arrow file
        assert read(settings(tmp_path, dataset_name=str(tmp_path / "d"))) == expected


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_local_ids_are_read_in_the_order_of_datasets(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    jsonl(path, [{"input_ids": row} for row in id_rows()])
    if suffix == "parquet":
        pq.write_table(pa.table({"input_ids": id_rows()}), path)
    rows = datasets.load_dataset(LOADERS[suffix], data_files=str(path), split="train", cache_dir=str(tmp_path / "theirs"))
    expected = rows.shuffle(seed=SEED, keep_in_memory=True)["input_ids"][:]
    assert read(settings(tmp_path, dataset_kind="pretokenized", dataset_name=str(path)), "input_ids") == expected


@pytest.mark.parametrize("suffix", list(LOADERS))
@pytest.mark.parametrize("count", [1, 3, 12])
def test_streams_are_read_in_the_order_of_datasets(tmp_path: Path, suffix: str, count: int) -> None:
    shards(tmp_path / "d", suffix, count)
    stream = datasets.load_dataset(str(tmp_path / "d"), split="train", streaming=True)
    expected = [row["text"] for row in stream.select_columns(["text"]).shuffle(seed=SEED, buffer_size=50)]
    assert read(settings(tmp_path, dataset_kind="hub", dataset_name=str(tmp_path / "d"), shuffle_buffer=50)) == expected


def test_a_stream_of_several_splits_is_read_in_the_order_of_datasets(tmp_path: Path) -> None:
    for split in ("train", "test"):
        jsonl(tmp_path / f"d/{split}.jsonl", [{"text": f"{split} {t}"} for t in documents(50)])
    stream = datasets.load_dataset(str(tmp_path / "d"), split="train+test", streaming=True)
    expected = [row["text"] for row in stream.shuffle(seed=SEED, buffer_size=50)]
    cfg = settings(tmp_path, dataset_kind="hub", dataset_name=str(tmp_path / "d"), shuffle_buffer=50)
    assert [row["text"] for row in sources.read_rows(cfg, "train+test")] == expected
