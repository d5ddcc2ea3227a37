"""The kinds of data: local files, sets on the hub, the demo, rows of ids, flat files of ids."""

import csv
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.characters import EOS, HELD, LENGTH, SEED, VOCABULARY, characters, settings
from helpers.token_data import (
    WINDOW,
    documents,
    flat,
    hub_folder,
    id_rows,
    jsonl,
    packed,
    pieces,
    sets,
    shuffled,
    trained_on,
    untouched,
    windowed,
)
from sae_transcoder.config import TokensDtype
from sae_transcoder.data import sources
from sae_transcoder.data.token_sets import prepare
from sae_transcoder.demo import text as demo_text


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet", "txt", "folder", "pattern"])
def test_local_files_of_every_kind_give_the_same_sequences(tmp_path: Path, corpus: str, suffix: str) -> None:
    texts, folder = documents(), tmp_path / "files"
    folder.mkdir()
    name, column = str(folder / f"a.{suffix}"), "body"
    if suffix == "csv":
        with open(name, "w", newline="") as file:
            csv.writer(file).writerows([["body", "n"], *([t, i] for i, t in enumerate(texts))])
    elif suffix == "parquet":
        pq.write_table(pa.table({"n": range(len(texts)), "body": texts}), name)
    elif suffix == "txt":
        name, column = str(folder), "text"
        for i, t in enumerate(texts):
            (folder / f"{i:03}.txt").write_text(t)
    elif suffix == "jsonl":
        jsonl(Path(name), [{"body": t} for t in texts])
    else:
        for part in range(4):
            jsonl(folder / f"deep/{part}.jsonl", [{"body": t} for t in texts[part * 100 : part * 100 + 100]])
        name = str(folder) if suffix == "folder" else str(folder / "**/*.jsonl")
    got = sets(settings(tmp_path, dataset_name=name, text_column=column))
    expected = sets(settings(tmp_path, dataset_name=corpus))
    np.testing.assert_array_equal(got.train[:], expected.train[:])


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    text = ("one\n\ntwo\n" * 200)[: 225 * LENGTH - 1]
    (tmp_path / "a.txt").write_text(text)
    got = sets(settings(tmp_path, dataset_name=str(tmp_path / "a.txt"), max_samples=None, eval_samples=1))
    assert sum((part[:] == EOS).sum() for part in (got.train, got.heldout)) == 1


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_hub_set_is_streamed_and_shuffled_in_its_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)  # datasets waits 5 s after a stream of parquet
    name = hub_folder(tmp_path / "set", suffix)
    got = sets(settings(tmp_path, dataset_kind="hub", dataset_name=name, shuffle_buffer=100))
    stream = datasets.load_dataset(name, split="train", streaming=True).shuffle(seed=SEED, buffer_size=100)
    rows = trained_on([characters(row["text"]) for row in stream])
    np.testing.assert_array_equal(got.train[:1024], windowed(rows[:WINDOW]))


def test_eval_split_holds_out_that_split_and_trains_on_all_of_the_other(tmp_path: Path) -> None:
    name = hub_folder(tmp_path / "set", validation=[text.upper() for text in documents(100, seed=9)])
    hub = dict(dataset_kind="hub", dataset_name=name, max_samples=None)
    got = sets(settings(tmp_path, **hub, eval_split="validation"))
    stream = datasets.load_dataset(name, split="train", streaming=True).shuffle(seed=SEED, buffer_size=10_000)
    np.testing.assert_array_equal(got.train[:], windowed(packed([characters(row["text"]) for row in stream])))
    assert all(piece.isupper() for piece in pieces(got.heldout[:]))
    few = sets(settings(tmp_path, **hub | {"eval_split": "validation"}, eval_samples=10**6))
    assert HELD < len(few.heldout) < 10**6


def test_the_demo_trains_and_holds_out_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"train": documents(200), "heldout": [text.upper() for text in documents(30, seed=5)]}
    monkeypatch.setattr(demo_text, "documents", lambda split: iter(texts[split]))
    got = sets(settings(tmp_path, dataset_kind="demo", dataset_name="demo", model_name="demo", max_samples=None))
    np.testing.assert_array_equal(got.train[:], windowed(packed([characters(t) for t in shuffled(texts["train"])])))
    assert got.origin.heldout_documents == 30
    assert all(piece.isupper() for piece in pieces(got.heldout[:]))


def test_the_demo_reads_the_standard_library(tmp_path: Path) -> None:
    got = sets(settings(tmp_path, dataset_kind="demo", dataset_name="demo", model_name="demo"), vocabulary=2**21)
    texts = "\n".join(demo_text.documents("heldout"))
    assert all("".join(chr(i - 300) for i in row if i != EOS) in texts for row in got.heldout[:].tolist())


@pytest.mark.parametrize("form", ["jsonl", "parquet", "saved", "saved splits"])
def test_rows_of_ids_are_cut_one_by_one_and_their_remainders_dropped(tmp_path: Path, form: str) -> None:
    rows, name = id_rows(), str(tmp_path / f"ids.{form}")
    if form == "jsonl":
        jsonl(Path(name), [{"ids": row} for row in rows])
    elif form == "parquet":
        pq.write_table(pa.table({"ids": pa.array(rows, pa.list_(pa.uint16()))}), name)
    elif form == "saved":
        datasets.Dataset.from_dict({"ids": rows}).save_to_disk(name)
    else:
        datasets.DatasetDict({"train": datasets.Dataset.from_dict({"ids": rows})}).save_to_disk(name)
    cfg = settings(tmp_path, dataset_kind="pretokenized", dataset_name=name, tokens_column="ids", max_samples=None)
    got = prepare(cfg, untouched, VOCABULARY)
    cut = [packed([row]) for row in shuffled(rows)]
    np.testing.assert_array_equal(got.train[:], windowed(np.concatenate(cut[300 // 10 :])))
    held_out = {row.tobytes() for row in np.concatenate(cut[: 300 // 10]).astype(np.int64)}
    assert {row.tobytes() for row in got.heldout[:]} <= held_out


def test_a_saved_set_holds_out_a_split_and_its_folder_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "saved"
    parts = {"train": id_rows(), "validation": id_rows(seed=4)}
    datasets.DatasetDict({k: datasets.Dataset.from_dict({"input_ids": v}) for k, v in parts.items()}).save_to_disk(folder)
    before = sorted(folder.rglob("*"))
    cfg = settings(tmp_path, dataset_kind="pretokenized", dataset_name=str(folder), eval_split="validation")
    got = sets(cfg)
    cut = np.concatenate([packed([row]) for row in parts["validation"]]).astype(np.int64)
    assert {row.tobytes() for row in got.heldout[:]} <= {row.tobytes() for row in cut}
    assert sorted(folder.rglob("*")) == before
    monkeypatch.setattr(sources, "open_rows", untouched)
    np.testing.assert_array_equal(sets(cfg).train[:], got.train[:])


def test_ids_of_a_name_that_is_no_file_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonl(tmp_path / "ids/train.jsonl", [{"input_ids": row, "n": None} for row in id_rows()])
    asked, load = [], datasets.load_dataset_builder

    def builder(*given: str | None) -> datasets.DatasetBuilder:
        asked.append(given)
        return load(str(tmp_path / "ids"))

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    cfg = settings(tmp_path, dataset_kind="pretokenized", dataset_name="someone/ids-v1.5", max_samples=100)
    assert len(sets(cfg).train) == 100
    assert set(asked) == {("someone/ids-v1.5", None)}


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("how", ["field", "side file"])
def test_a_flat_file_is_read_in_place_in_its_own_number_format(tmp_path: Path, dtype: str, how: str) -> None:
    top = 60_000 if dtype == "uint16" else 130_000
    values = np.arange(3000 * LENGTH + 5) % top
    name = flat(tmp_path / "ids.bin", values.astype(dtype), **({"dtype": dtype} if how == "side file" else {}))
    given = TokensDtype(dtype) if how == "field" else None
    cfg = settings(tmp_path, dataset_kind="memmap", dataset_name=name, tokens_dtype=given, max_samples=None)
    got = prepare(cfg, untouched, top)
    rows = values[: 3000 * LENGTH].reshape(-1, LENGTH)
    blocks = np.random.default_rng(SEED).permutation(3000 // 64)
    order = [b * 64 + i for b in blocks for i in range(64)] + list(range(3000 // 64 * 64, 3000))
    np.testing.assert_array_equal(got.heldout[:], rows[order[:HELD]])
    np.testing.assert_array_equal(got.train[:], windowed(rows[order[HELD:]]))
    np.testing.assert_array_equal(
        prepare(settings(tmp_path, **vars(cfg) | {"max_samples": 70}), untouched, top).train[:], got.train[:70]
    )
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["part[12].jsonl", "run[7].jsonl", "[x]/a.jsonl", "a*b.jsonl", "q?.jsonl", "[!z].jsonl"])
def test_a_name_that_exists_is_that_file_whatever_its_characters(tmp_path: Path, name: str) -> None:
    jsonl(tmp_path / "part1.jsonl", [{"text": "another"}])
    (tmp_path / name).parent.mkdir(exist_ok=True)
    named = jsonl(tmp_path / name, [{"text": "this one"}])
    for dataset_name in {named, str(Path(named).parent) if "/" in name else named}:
        rows = list(sources.read_rows(settings(tmp_path, dataset_name=dataset_name), "train"))
        assert [row["text"] for row in rows] == ["this one"]


def test_hidden_files_and_folders_are_no_part_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / ".data" / "texts"  # a hidden folder above is the user's own choice
    for place in (folder, folder / "sub", folder / ".ipynb_checkpoints", folder / "sub" / ".cache"):
        place.mkdir(parents=True)
        jsonl(place / "a.jsonl", [{"text": place.name}])
    (folder / "._a.jsonl").write_bytes(b"\0\5\26\7 Mac OS X")
    rows = sources.read_rows(settings(tmp_path, dataset_name=str(folder)), "train")
    assert sorted(row["text"] for row in rows) == ["sub", "texts"]
