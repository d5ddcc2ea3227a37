"""The token sequences: what they hold, their order, the cache that keeps them, and the data that is refused."""

import csv
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from helpers import ROOT, TESTS
from helpers.characters import EOS, HELD, LENGTH, SEED, VOCABULARY, Characters, characters, settings
from sae_transcoder.config import Config, ConfigError, TokensDtype
from sae_transcoder.data import sources
from sae_transcoder.data.run_length import needed_samples
from sae_transcoder.data.token_sets import TokenSets, prepare
from sae_transcoder.demo import text as demo_text

WINDOW = 1024  # the promise of the README, not whatever the module says


def documents(count: int = 400, seed: int = 0) -> list[str]:
    """Texts of 1 to 200 characters, the tenth much longer."""
    rng = np.random.default_rng(seed)
    sizes = [4000 if i == 9 else int(rng.integers(1, 200)) for i in range(count)]
    return ["".join(map(chr, rng.integers(97, 123, size))) for size in sizes]


def sets(cfg: Config, tokenizer: Any = None, vocabulary: int = VOCABULARY) -> TokenSets:
    return prepare(cfg, lambda: tokenizer or Characters(), vocabulary)


def untouched() -> Any:
    raise AssertionError("the tokenizer was loaded though the cache suffices")


def refusal(cfg: Config, tokenizer: Any = None, vocabulary: int = VOCABULARY) -> str:
    with pytest.raises(ConfigError) as error:
        sets(cfg, tokenizer, vocabulary)
    return str(error.value)


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def packed(ids: list[list[int]], length: int = LENGTH) -> np.ndarray:
    stream = [i for document in ids for i in document]
    return np.array(stream[: len(stream) // length * length]).reshape(-1, length)


def windowed(rows: np.ndarray, seed: int = SEED) -> np.ndarray:
    """The reading order of training rows, one row at a time."""
    out = []
    for window, start in enumerate(range(0, len(rows), WINDOW)):
        part = rows[start : start + WINDOW]
        out += [part[i] for i in np.random.default_rng([seed, window]).permutation(len(part))]
    return np.array(out)


def shuffled(things: list[Any], seed: int = SEED) -> list[Any]:
    return [things[i] for i in np.random.default_rng(seed).permutation(len(things))]


def written(cfg: Config) -> dict[str, bytes]:
    """{file: content} of the only cached set."""
    (folder,) = {p.parent for p in Path(str(cfg.cache_dir)).glob("*/state.json")}
    return {name: (folder / name).read_bytes() for name in ("tokens.bin", "state.json")}


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    return jsonl(tmp_path / "corpus.jsonl", [{"text": t} for t in documents()])


# What the sequences hold and in which order


def test_text_is_packed_with_a_separator_before_each_document_and_read_in_shuffled_windows(tmp_path: Path, corpus: str) -> None:
    got = sets(settings(tmp_path, dataset_name=corpus, max_samples=None))
    rows = packed([characters(t) for t in shuffled(documents())])
    assert len(rows) > 3 * WINDOW
    np.testing.assert_array_equal(got.heldout[:], rows[:HELD])
    np.testing.assert_array_equal(got.train[:], windowed(rows[HELD:]))


def test_sequences_are_int64_arrays_that_any_slice_gives(tmp_path: Path, corpus: str) -> None:
    train = sets(settings(tmp_path, dataset_name=corpus)).train
    everything = train[:]
    assert len(train) == 1100
    assert everything.shape == (1100, LENGTH)
    assert everything.dtype == np.int64
    for a, b in [(0, 2), (1020, 1030), (1098, 2000), (5, 5)]:
        np.testing.assert_array_equal(train[a:b], everything[a:b])


def test_a_real_tokenizer_gives_the_ids_of_each_document_alone(tmp_path: Path, corpus: str) -> None:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    bpe.train_from_iterator(documents(50), trainers.BpeTrainer(vocab_size=300, special_tokens=["<end>"], show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>")
    got = sets(settings(tmp_path, dataset_name=corpus, max_samples=None), tokenizer, 300)
    ids = [[tokenizer.eos_token_id, *bpe.encode(t, add_special_tokens=False).ids] for t in shuffled(documents())]
    np.testing.assert_array_equal(got.train[:], windowed(packed(ids)[HELD:]))


@pytest.mark.parametrize(("present", "used"), [("eos bos sep", "eos"), ("bos sep", "bos"), ("sep", "sep")])
def test_the_separator_is_the_end_token_else_the_beginning_else_the_separating_one(
    tmp_path: Path, corpus: str, present: str, used: str
) -> None:
    tokenizer, ids = Characters(), {"eos": 1, "bos": 2, "sep": 3}
    for name, value in ids.items():
        setattr(tokenizer, f"{name}_token_id", value if name in present.split() else None)
    assert sets(settings(tmp_path, dataset_name=corpus), tokenizer).heldout[:1][0, 0] == ids[used]


def test_a_short_run_reads_a_prefix_of_what_a_long_one_reads(tmp_path: Path, corpus: str) -> None:
    cfg = dict(dataset_name=corpus)
    whole = sets(settings(tmp_path / "whole", **cfg, max_samples=None))
    for samples in (1, 700, 1024, 1500):
        for folder in (tmp_path / str(samples), tmp_path / "grown"):
            part = sets(settings(folder, **cfg, max_samples=samples))
            assert len(part.train) == samples
            np.testing.assert_array_equal(part.train[:], whole.train[:samples])
            np.testing.assert_array_equal(part.heldout[:], whole.heldout[:])


def test_held_out_sequences_are_not_trained_on(tmp_path: Path, corpus: str) -> None:
    got = sets(settings(tmp_path, dataset_name=corpus, max_samples=None))
    assert len(got.heldout) == HELD
    assert not {row.tobytes() for row in got.heldout[:]} & {row.tobytes() for row in got.train[:]}


def test_a_long_document_does_not_fill_a_batch(tmp_path: Path) -> None:
    name = jsonl(tmp_path / "two.jsonl", [{"text": letter * WINDOW * LENGTH} for letter in "ab"])
    train = sets(settings(tmp_path, dataset_name=name, max_samples=None, eval_samples=WINDOW // 2)).train
    assert len({row[1] for row in train[:16]}) == 2


def test_seeds_give_other_orders(tmp_path: Path, corpus: str) -> None:
    a, b = (sets(settings(tmp_path, dataset_name=corpus, shuffle_seed=seed)) for seed in (1, 2))
    assert not np.array_equal(a.train[:], b.train[:])


@pytest.mark.parametrize(
    ("given", "needed"),
    [
        (dict(max_samples=None, max_steps=None), None),
        (dict(max_samples=70, max_steps=None), 70),
        (dict(max_samples=None, max_steps=3, grad_acc_steps=4, batch_size=5), 60),
        (dict(max_samples=70, max_steps=3, grad_acc_steps=4, batch_size=5), 60),
        (dict(max_samples=50, max_steps=3, grad_acc_steps=4, batch_size=5), 50),
    ],
)
def test_needed_samples_are_the_fewer_of_samples_and_steps(tmp_path: Path, given: dict[str, int], needed: int | None) -> None:
    assert needed_samples(settings(tmp_path, dataset_name="x", **given)) == needed


def test_data_that_ends_before_max_samples_gives_what_there_is(tmp_path: Path, corpus: str) -> None:
    everything = sets(settings(tmp_path, dataset_name=corpus, max_samples=None))
    assert len(sets(settings(tmp_path, dataset_name=corpus, max_samples=10**6)).train) == len(everything.train)


def test_documents_without_text_give_nothing(tmp_path: Path) -> None:
    texts = documents(80)
    name = jsonl(tmp_path / "gaps.jsonl", [row for t in texts for row in ({"text": t}, {"text": None}, {"text": ""})])
    got = sets(settings(tmp_path, dataset_name=name, max_samples=None))
    stream = np.concatenate([got.heldout[:], got.train[:]])
    separators = sum(len(texts) > 0 for _ in texts)
    assert separators - 1 <= (stream == EOS).sum() <= separators
    assert not np.any((stream[:, 1:] == EOS) & (stream[:, :-1] == EOS))


# Kinds


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
    text = "one\n\ntwo\n" * 200
    (tmp_path / "a.txt").write_text(text)
    got = sets(settings(tmp_path, dataset_name=str(tmp_path / "a.txt"), max_samples=None, eval_samples=1))
    assert sum((part[:] == EOS).sum() for part in (got.train, got.heldout)) == 1


def hub_folder(folder: Path, suffix: str = "jsonl", validation: list[str] | None = None) -> str:
    """A data set as the hub keeps it: two splits, the training one in three files."""
    texts = documents()
    parts = {f"train-{i:05}-of-00003": texts[i * 150 : i * 150 + 150] for i in range(3)}
    for part, of in (parts | {"validation-00000-of-00001": validation or documents(100, seed=9)}).items():
        rows = [{"text": t, "n": i} for i, t in enumerate(of)]
        jsonl(folder / f"{part}.jsonl", rows)
        if suffix == "parquet":
            (folder / f"{part}.jsonl").unlink()
            pq.write_table(pa.Table.from_pylist(rows), folder / f"{part}.parquet")
    return str(folder)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_hub_set_is_streamed_and_shuffled_in_its_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)  # datasets waits 5 s after a stream of parquet
    name = hub_folder(tmp_path / "set", suffix)
    got = sets(settings(tmp_path, dataset_kind="hub", dataset_name=name, shuffle_buffer=100))
    stream = datasets.load_dataset(name, split="train", streaming=True).shuffle(seed=SEED, buffer_size=100)
    rows = packed([characters(row["text"]) for row in stream])
    np.testing.assert_array_equal(got.heldout[:], rows[:HELD])
    np.testing.assert_array_equal(got.train[:1024], windowed(rows[HELD : HELD + WINDOW]))


def test_eval_split_holds_out_that_split_and_trains_on_all_of_the_other(tmp_path: Path) -> None:
    name = hub_folder(tmp_path / "set")
    hub = dict(dataset_kind="hub", dataset_name=name, max_samples=None)
    got = sets(settings(tmp_path, **hub, eval_split="validation"))
    stream = datasets.load_dataset(name, split="validation", streaming=True).shuffle(seed=SEED, buffer_size=10_000)
    np.testing.assert_array_equal(got.heldout[:], packed([characters(row["text"]) for row in stream])[:HELD])
    assert len(got.train) == len(sets(settings(tmp_path, **hub)).train) + HELD
    few = sets(settings(tmp_path, **hub | {"eval_split": "validation"}, eval_samples=10**6))
    assert HELD < len(few.heldout) < 10**6


def test_the_demo_trains_and_holds_out_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"train": documents(200), "heldout": documents(30, seed=5)}
    monkeypatch.setattr(demo_text, "documents", lambda split: iter(texts[split]))
    got = sets(settings(tmp_path, dataset_kind="demo", dataset_name="demo", model_name="demo", max_samples=None))
    rows = {split: packed([characters(t) for t in shuffled(of)]) for split, of in texts.items()}
    np.testing.assert_array_equal(got.train[:], windowed(rows["train"]))
    np.testing.assert_array_equal(got.heldout[:], rows["heldout"][:HELD])


def test_the_demo_reads_the_standard_library(tmp_path: Path) -> None:
    got = sets(settings(tmp_path, dataset_kind="demo", dataset_name="demo", model_name="demo"), vocabulary=2**21)
    text = "".join(chr(i - 300) for i in got.heldout[:].flatten().tolist() if i != EOS)
    assert text[:100] in "".join(demo_text.documents("heldout"))


def id_rows(count: int = 300, seed: int = 3) -> list[list[int]]:
    """Rows of 0 to 100 ids."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCABULARY, rng.integers(0, 100)).tolist() for _ in range(count)]


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
    cut = np.concatenate([packed([row]) for row in shuffled(rows)])
    np.testing.assert_array_equal(got.heldout[:], cut[:HELD])
    np.testing.assert_array_equal(got.train[:], windowed(cut[HELD:]))


def test_a_saved_set_holds_out_a_split_and_its_folder_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "saved"
    parts = {"train": id_rows(), "validation": id_rows(seed=4)}
    datasets.DatasetDict({k: datasets.Dataset.from_dict({"input_ids": v}) for k, v in parts.items()}).save_to_disk(folder)
    before = sorted(folder.rglob("*"))
    cfg = settings(tmp_path, dataset_kind="pretokenized", dataset_name=str(folder), eval_split="validation")
    got = sets(cfg)
    cut = np.concatenate([packed([row]) for row in shuffled(parts["validation"])])
    np.testing.assert_array_equal(got.heldout[:], cut[:HELD])
    assert sorted(folder.rglob("*")) == before
    monkeypatch.setattr(sources, "open_rows", untouched)
    np.testing.assert_array_equal(sets(cfg).train[:], got.train[:])


def test_ids_of_a_name_that_is_no_file_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, config: str | None, *, split: str, streaming: bool) -> datasets.IterableDataset:
        asked.append((name, config, split, streaming))
        return datasets.Dataset.from_dict({"input_ids": id_rows()}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    cfg = settings(tmp_path, dataset_kind="pretokenized", dataset_name="someone/ids-v1.5", max_samples=100)
    assert len(sets(cfg).train) == 100
    assert asked == [("someone/ids-v1.5", None, "train", True)]


def flat(path: Path, values: np.ndarray, **side: Any) -> str:
    path.write_bytes(values.tobytes())
    if side:
        Path(f"{path}.json").write_text(json.dumps(side))
    return str(path)


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


# The cache


def test_a_prepared_set_is_read_again_without_source_tokenizer_or_a_word(
    tmp_path: Path, corpus: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    cfg = settings(tmp_path, dataset_name=corpus)
    first = sets(cfg)
    capfd.readouterr()
    monkeypatch.setattr(sources, "open_rows", untouched)
    again = prepare(cfg, untouched, VOCABULARY)
    np.testing.assert_array_equal(again.train[:], first.train[:])
    assert capfd.readouterr() == ("", "")


def test_more_samples_extend_the_cache_without_tokenising_anything_again(tmp_path: Path, corpus: str) -> None:
    tokenizer = Characters()
    small, large = (settings(tmp_path, dataset_name=corpus, max_samples=n) for n in (10, 2000))
    sets(small, tokenizer)
    once = tokenizer.texts
    sets(large, tokenizer)
    fresh = settings(tmp_path / "fresh", dataset_name=corpus, max_samples=2000)
    sets(fresh, other := Characters())
    assert written(large) == written(fresh)
    # Documents are tokenised 64 at a time; those of a batch that were not needed are read again.
    assert once < tokenizer.texts <= other.texts + 64


@pytest.mark.parametrize("kind", ["local_text", "hub"])
def test_a_preparation_that_fails_midway_goes_on_to_the_same_bytes(
    tmp_path: Path, corpus: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    name = corpus if kind == "local_text" else hub_folder(tmp_path / "set")
    cfg, undisturbed = (settings(tmp_path / f, dataset_name=name, dataset_kind=kind, max_samples=None) for f in "ab")
    read = sources.open_rows

    def broken(*given: Any) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(read(*given)):
            if number == 200:
                raise KeyboardInterrupt
            yield row

    monkeypatch.setattr(sources, "open_rows", broken)
    with pytest.raises(KeyboardInterrupt):
        sets(cfg)
    assert 0 < json.loads(written(cfg)["state.json"])["documents"] < 200
    monkeypatch.setattr(sources, "open_rows", read)
    sets(cfg)
    sets(undisturbed)
    assert written(cfg) == written(undisturbed)


SCRIPT = """
import sys, time
sys.path[:0] = {paths!r}
from helpers.characters import Characters, settings
from sae_transcoder.data.token_sets import prepare
from pathlib import Path
class Slow(Characters):
    def __call__(self, texts, **given):
        time.sleep({pause})
        return super().__call__(texts, **given)
tokenizer = Slow()
train = prepare(settings(Path({folder!r}), dataset_name={name!r}, max_samples=None), lambda: tokenizer, 2000).train
print(tokenizer.texts, hash(train[:].tobytes()))
"""


def started(folder: Path, name: str, pause: float) -> subprocess.Popen:
    """A process that prepares the set."""
    paths = [str(TESTS), str(ROOT)]
    script = SCRIPT.format(paths=paths, pause=pause, folder=str(folder), name=name)
    env = os.environ | {"PYTHONHASHSEED": "0"}
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=env)


def test_a_killed_preparation_goes_on_to_the_same_bytes(tmp_path: Path, corpus: str) -> None:
    cfg, undisturbed = (settings(tmp_path / f, dataset_name=corpus, max_samples=None) for f in "ab")
    process = started(tmp_path / "a", corpus, 0.5)
    limit = time.monotonic() + 60
    while not list((tmp_path / "a/cache").glob("*/state.json")):
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not json.loads(written(cfg)["state.json"])["exhausted"]
    # Bytes that state.json does not know of are what a kill between two writes leaves.
    with next((tmp_path / "a/cache").glob("*/tokens.bin")).open("ab") as file:
        file.write(b"\1" * 37)
    sets(cfg)
    sets(undisturbed)
    assert written(cfg) == written(undisturbed)


def test_two_processes_prepare_one_set_once(tmp_path: Path, corpus: str) -> None:
    processes = [started(tmp_path, corpus, 0.05) for _ in range(2)]
    printed = [p.communicate(timeout=60)[0].split() for p in processes]
    assert [p.returncode for p in processes] == [0, 0]
    assert printed[0][1] == printed[1][1]
    assert sorted(int(p[0]) for p in printed) == [0, len(documents())]


@pytest.mark.parametrize(
    "change",
    [
        dict(shuffle_seed=1), dict(shuffle_buffer=7), dict(max_seq_length=9), dict(text_column="other"), dict(model_name="x/y"),
        dict(revision="v2"),
    ],
)  # fmt: skip
def test_what_changes_the_tokens_is_kept_apart(tmp_path: Path, change: dict[str, Any]) -> None:
    name = jsonl(tmp_path / "c.jsonl", [{"text": t, "other": t} for t in documents(80)])
    sets(settings(tmp_path, dataset_name=name))
    sets(settings(tmp_path, dataset_name=name, **change))
    assert len(list((tmp_path / "cache").glob("*/state.json"))) == 2


def test_what_does_not_change_the_tokens_is_shared(tmp_path: Path, corpus: str) -> None:
    for change in (dict(max_samples=5), dict(max_steps=2, max_samples=None), dict(batch_size=4), dict(eval_samples=7)):
        sets(settings(tmp_path, dataset_name=corpus, **change))
    assert len(list((tmp_path / "cache").glob("*/state.json"))) == 1


@pytest.mark.parametrize("left", [0, 400])
def test_a_cache_that_lost_tokens_is_not_read_as_if_it_had_them(tmp_path: Path, corpus: str, left: int) -> None:
    sets(settings(tmp_path, dataset_name=corpus, max_samples=10))
    os.truncate(next((tmp_path / "cache").glob("*/tokens.bin")), left)
    got = sets(settings(tmp_path, dataset_name=corpus, max_samples=2000))
    fresh = sets(settings(tmp_path / "fresh", dataset_name=corpus, max_samples=2000))
    np.testing.assert_array_equal(got.train[:], fresh.train[:])


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    name = jsonl(tmp_path / "c.jsonl", [{"text": t} for t in documents(80)])
    before = sets(settings(tmp_path, dataset_name=name)).train[:]
    jsonl(tmp_path / "c.jsonl", [{"text": t} for t in documents(81, seed=1)])
    assert not np.array_equal(sets(settings(tmp_path, dataset_name=name)).train[: len(before)], before)


def test_a_hub_folder_that_changes_is_read_anew(tmp_path: Path) -> None:
    cfg = settings(tmp_path, dataset_kind="hub", dataset_name=str(tmp_path / "set"))
    for seed in (0, 1):
        jsonl(tmp_path / "set/a.jsonl", [{"text": t} for t in documents(80 + seed, seed=seed)])
        got = sets(cfg)
    fresh = settings(tmp_path / "fresh", dataset_kind="hub", dataset_name=str(tmp_path / "set"))
    np.testing.assert_array_equal(got.train[:], sets(fresh).train[:])


def test_a_local_model_is_known_by_its_tokenizers_files(tmp_path: Path) -> None:
    name = jsonl(tmp_path / "c.jsonl", [{"text": t} for t in documents(80)])
    for model, content in [("m", "a"), ("copy", "a"), ("m", "b")]:
        (tmp_path / model).mkdir(exist_ok=True)
        (tmp_path / model / "tokenizer.json").write_text(content)
        sets(settings(tmp_path, dataset_name=name, model_name=str(tmp_path / model)))
    assert len(list((tmp_path / "cache").glob("*/state.json"))) == 2


def test_ids_kept_for_one_vocabulary_are_not_read_as_those_of_another(tmp_path: Path) -> None:
    name = jsonl(tmp_path / "ids.jsonl", [{"input_ids": row} for row in id_rows()])
    cfg = settings(tmp_path, dataset_kind="pretokenized", dataset_name=name)
    narrow, wide = sets(cfg, vocabulary=VOCABULARY), sets(cfg, vocabulary=100_000)
    np.testing.assert_array_equal(wide.train[:], narrow.train[:])
    assert "holds the token id" in refusal(cfg, vocabulary=1000)


def test_ids_above_sixteen_bits_survive(tmp_path: Path) -> None:
    rows = [[70_000 + i for i in row] for row in id_rows()]
    name = jsonl(tmp_path / "ids.jsonl", [{"input_ids": row} for row in rows])
    got = sets(settings(tmp_path, dataset_kind="pretokenized", dataset_name=name), vocabulary=100_000)
    assert got.train[:].min() >= 70_000


def test_the_cache_lies_in_the_users_cache_folder_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = settings(tmp_path, dataset_name="x", cache_dir=None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert sources.cache_dir(cfg) == tmp_path / "sae_transcoder"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert sources.cache_dir(cfg) == Path.home() / ".cache/sae_transcoder"


MEMORY = """
import resource, sys
sys.path[:0] = {paths!r}
from helpers.characters import Characters, settings
from sae_transcoder.data.token_sets import prepare
from pathlib import Path
for samples in (4000, 16000):
    cfg = settings(Path({folder!r}) / str(samples), dataset_kind="hub", dataset_name={name!r}, max_samples=samples,
                   max_seq_length=256, shuffle_buffer=100)
    assert len(prepare(cfg, Characters, 2000).train) == samples
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(platform.system() != "Linux", reason="ru_maxrss is in KiB on Linux only")
def test_memory_stays_flat_as_max_samples_grows(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    text = "".join(map(chr, np.random.default_rng(0).integers(97, 123, 4000)))
    jsonl(folder / "train.jsonl", [{"text": text}] * 4500)
    paths = [str(TESTS), str(ROOT)]
    script = MEMORY.format(paths=paths, folder=str(tmp_path), name=str(folder))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    few, many = map(int, done.stdout.split())
    assert many - few < 30_000, "KiB; 12,000 more samples are 3 million ids: 24 MiB as int64, 100 MiB as Python's ints"


def test_the_module_does_not_import_torch(tmp_path: Path, corpus: str) -> None:
    script = (
        "import sys, sae_transcoder.data.token_sets; sys.exit(any(m in sys.modules for m in ('torch', 'datasets', 'transformers')))"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", script], env=env).returncode == 0


# What is refused


def test_a_missing_text_column_names_those_that_there_are(tmp_path: Path) -> None:
    name = jsonl(tmp_path / "c.jsonl", [{"body": "x", "title": "y"}])
    message = refusal(settings(tmp_path, dataset_name=name))
    assert "text_column=text" in message
    assert "body, title" in message


def test_a_missing_text_column_of_a_hub_set_names_those_that_there_are(tmp_path: Path) -> None:
    message = refusal(settings(tmp_path, dataset_kind="hub", dataset_name=hub_folder(tmp_path / "s"), text_column="body"))
    assert "text_column=body" in message
    assert "text, n" in message


def test_a_text_column_of_numbers_is_refused(tmp_path: Path) -> None:
    name = jsonl(tmp_path / "c.jsonl", [{"text": 5}])
    assert "holds int there, not text" in refusal(settings(tmp_path, dataset_name=name))


@pytest.mark.parametrize(
    ("names", "said"),
    [([], "no such file"), (["a.jsonl", "b.txt"], ".jsonl, .txt"), (["a.md"], ".md"), (["a"], "no suffix")],
)
@pytest.mark.parametrize("kind", ["local_text", "pretokenized"])
def test_a_folder_without_files_of_one_known_kind_is_refused(tmp_path: Path, names: list[str], said: str, kind: str) -> None:
    (tmp_path / "d").mkdir()
    for name in names:
        (tmp_path / "d" / name).write_text("{}")
    message = refusal(settings(tmp_path, dataset_name=str(tmp_path / "d"), dataset_kind=kind))
    assert said in message
    assert ".parquet" in message


@pytest.mark.parametrize("kind", ["local_text", "pretokenized", "memmap"])
def test_a_missing_file_is_refused(tmp_path: Path, kind: str) -> None:
    assert "no such file" in refusal(settings(tmp_path, dataset_name=str(tmp_path / "none.jsonl"), dataset_kind=kind))


@pytest.mark.parametrize("kind", ["local_text", "hub"])
def test_a_broken_file_is_refused_with_its_reason(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "d"
    jsonl(folder / "a.jsonl", [{"text": "x"}] * 3)
    with (folder / "a.jsonl").open("a") as file:
        file.write('{"text": \n')
    assert "JSON parse error" in refusal(settings(tmp_path, dataset_name=str(folder), dataset_kind=kind))


def test_a_stream_that_breaks_off_is_refused_with_its_reason_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = settings(tmp_path, dataset_kind="hub", dataset_name=hub_folder(tmp_path / "set"))
    read = sources.open_rows

    def cut(*given: Any) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(read(*given)):
            if number == 100:
                raise ConnectionError("connection reset by peer")
            yield row

    monkeypatch.setattr(sources, "open_rows", cut)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    message = refusal(cfg)
    assert "connection reset by peer" in message
    assert "goes on" in message
    monkeypatch.setattr(sources, "open_rows", read)
    assert len(sets(cfg).train) == 1100


def test_an_unreachable_hub_set_names_the_offline_switch(tmp_path: Path) -> None:
    message = refusal(settings(tmp_path, dataset_kind="hub", dataset_name="nobody/nothing"))
    assert "nobody/nothing" in message
    assert "HF_HUB_OFFLINE" in message


def test_a_split_or_config_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    hub = dict(dataset_kind="hub", dataset_name=hub_folder(tmp_path / "set"))
    message = refusal(settings(tmp_path, **hub, dataset_split="dev"))
    assert "dataset_split=dev" in message
    assert "'train', 'validation'" in message
    assert "HF_HUB_OFFLINE" not in message
    assert "'train', 'validation'" in refusal(settings(tmp_path, **hub, eval_split="dev"))
    assert "['default']" in refusal(settings(tmp_path, **hub, dataset_config="english"))


def test_a_saved_set_without_the_split_names_those_that_there_are(tmp_path: Path) -> None:
    part = datasets.Dataset.from_dict({"input_ids": id_rows()})
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path / "s")
    message = refusal(settings(tmp_path, dataset_kind="pretokenized", dataset_name=str(tmp_path / "s"), dataset_split="dev"))
    assert "train, test" in message


def test_holding_out_what_is_trained_on_is_refused(tmp_path: Path) -> None:
    hub = settings(tmp_path, dataset_kind="hub", dataset_name=hub_folder(tmp_path / "set"), eval_split="train")
    assert "eval_split=train and dataset_split=train" in refusal(hub)
    name = jsonl(tmp_path / "ids.jsonl", [{"input_ids": row} for row in id_rows()])
    files = settings(tmp_path, dataset_kind="pretokenized", dataset_name=name, eval_split="validation")
    assert "have no splits" in refusal(files)


@pytest.mark.parametrize("bad", ["text", 5, None, [1.5] * 9, [[1, 2], [3, 4]], [[1], [2, 3]], ["a"] * 9])
def test_rows_that_are_no_lists_of_ids_are_refused(tmp_path: Path, bad: Any) -> None:
    name = jsonl(tmp_path / "ids.jsonl", [{"input_ids": bad}])
    message = refusal(settings(tmp_path, dataset_kind="pretokenized", dataset_name=name))
    assert "tokens_column=input_ids" in message
    assert "not a list of token ids" in message


def test_a_missing_tokens_column_names_those_that_there_are(tmp_path: Path) -> None:
    name = jsonl(tmp_path / "ids.jsonl", [{"ids": [1] * 9, "n": 1}])
    message = refusal(settings(tmp_path, dataset_kind="pretokenized", dataset_name=name))
    assert "tokens_column=input_ids" in message
    assert "ids, n" in message


@pytest.mark.parametrize("worst", [VOCABULARY, 70_000, -1])
def test_rows_with_ids_that_the_model_lacks_are_refused(tmp_path: Path, worst: int) -> None:
    name = jsonl(tmp_path / "ids.jsonl", [{"input_ids": [1, worst] * 9}])
    message = refusal(settings(tmp_path, dataset_kind="pretokenized", dataset_name=name))
    assert f"the token id {worst}," in message
    assert f"model_name=tests/letters has the ids 0 to {VOCABULARY - 1}" in message


def test_a_tokenizer_with_ids_that_the_model_lacks_is_refused(tmp_path: Path, corpus: str) -> None:
    assert f"gives the id {EOS}, the model has the ids 0 to 999" in refusal(
        settings(tmp_path, dataset_name=corpus), vocabulary=1000
    )


def test_a_tokenizer_without_any_separator_is_refused(tmp_path: Path, corpus: str) -> None:
    tokenizer = Characters()
    tokenizer.eos_token_id = None  # type: ignore[assignment]
    message = refusal(settings(tmp_path, dataset_name=corpus), tokenizer)
    assert "model_name=tests/letters: its tokenizer has no end, begin or separator token" in message


@pytest.mark.parametrize(("kind", "held"), [("local_text", 50), ("local_text", 3), ("pretokenized", 3), ("memmap", 3)])
def test_data_that_leaves_nothing_to_train_on_is_refused_with_its_size(tmp_path: Path, kind: str, held: int) -> None:
    name = jsonl(tmp_path / "c.jsonl", [{"text": "x" * 23, "input_ids": list(range(24))}])
    if kind == "memmap":
        name = flat(tmp_path / "ids.bin", np.arange(24, dtype=np.uint16), dtype="uint16")
    message = refusal(settings(tmp_path, dataset_name=name, dataset_kind=kind, eval_samples=held))
    assert f"3 sequences of max_seq_length={LENGTH} tokens" in message
    assert f"eval_samples={held}" in message


def test_an_eval_split_that_fills_no_sequence_is_refused(tmp_path: Path) -> None:
    name = hub_folder(tmp_path / "set", validation=["abc"])
    message = refusal(settings(tmp_path, dataset_kind="hub", dataset_name=name, eval_split="validation"))
    assert "eval_split=validation: fills no sequence" in message


@pytest.mark.parametrize(
    ("side", "size", "said"),
    [
        ({}, 800, "set tokens_dtype=uint16 or uint32"),
        ({"dtype": "float32"}, 800, "float32 is not uint16 or uint32"),
        ({"type": "uint16"}, 800, "does not say the dtype"),
        ({"dtype": "uint32"}, 802, "802 bytes are no whole number of uint32"),
        ({"dtype": "uint16"}, 0, "0 sequences"),
    ],
)
def test_a_flat_file_of_unknown_format_or_broken_size_is_refused(tmp_path: Path, side: dict, size: int, said: str) -> None:
    name = flat(tmp_path / "ids.bin", np.zeros(size, np.uint8), **side)
    assert said in refusal(settings(tmp_path, dataset_kind="memmap", dataset_name=name))


def test_a_flat_file_is_searched_for_ids_that_the_model_lacks_only_where_it_is_used(tmp_path: Path) -> None:
    values = np.zeros((3000, LENGTH), np.uint16)
    values[-1, -1] = VOCABULARY  # the last sequence of the tail that fills no block: read last or near it
    name = flat(tmp_path / "ids.bin", values, dtype="uint16")
    cfg = dict(dataset_kind="memmap", dataset_name=name)
    assert f"the token id {VOCABULARY}," in refusal(settings(tmp_path, **cfg, max_samples=None))
    assert len(sets(settings(tmp_path, **cfg, max_samples=1000)).train) == 1000
