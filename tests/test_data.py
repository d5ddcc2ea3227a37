"""Token sequences from every kind of source: what they hold, their order, their cache, and what is refused."""

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest
from conftest import demo_tokenizer

from sae_transcoder import data, token_cache
from sae_transcoder.config import Config, ConfigError
from sae_transcoder.data import needed_samples, prepare

LENGTH, VOCABULARY = 16, 4096
WORDS = [f"document {i}: " + " ".join(f"value{i * j % 97}" for j in range(20 + i % 50)) for i in range(120)]


def config(tmp_path: Path, kind: str, name: object, **settings: object) -> Config:
    from conftest import tiny_config

    usual = dict(
        dataset_kind=kind,
        dataset_name=str(name),
        model_name="demo",
        cache_dir=str(tmp_path / "cache"),
        eval_samples=5,
        max_samples=40,
    )
    return tiny_config("sae", **(usual | {"max_seq_length": LENGTH} | settings))


def prepared(cfg: Config, vocabulary: int = VOCABULARY) -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out sequences, whole."""
    sets = prepare(cfg, demo_tokenizer, vocabulary)
    return sets.train[:], sets.heldout[:]


def refusal(cfg: Config, vocabulary: int = VOCABULARY) -> str:
    with pytest.raises(ConfigError) as error:
        prepare(cfg, demo_tokenizer, vocabulary)
    return str(error.value)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": t, "n": i}) + "\n" for i, t in enumerate(WORDS)))
    return path


def as_set(rows: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(row) for row in rows.tolist()}


def test_packed_sequences_equal_an_independent_computation(tmp_path: Path, text_file: Path) -> None:
    train, heldout = prepared(config(tmp_path, "local_text", text_file, max_samples=None))
    shuffled = datasets.Dataset.from_dict({"text": WORDS}).shuffle(seed=42)["text"]
    tokenizer = demo_tokenizer()
    stream = [i for text in shuffled for i in [tokenizer.eos_token_id, *tokenizer.encode(text, add_special_tokens=False)]]
    rows = np.array(stream[: len(stream) // LENGTH * LENGTH]).reshape(-1, LENGTH)
    assert np.array_equal(heldout, rows[:5])
    assert sorted(train.tolist()) == sorted(rows[5:].tolist())
    assert not np.array_equal(train, rows[5:]), "the order is mixed, so that a long document does not fill a batch"


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv", "parquet"])
def test_local_files_of_every_kind_give_the_same_tokens(tmp_path: Path, text_file: Path, suffix: str) -> None:
    folder = tmp_path / suffix
    folder.mkdir()
    if suffix == "txt":
        for i, text in enumerate(WORDS):
            (folder / f"{i:03}.txt").write_text(text)
    else:
        frame = pandas.DataFrame({"text": WORDS})
        {"csv": frame.to_csv, "parquet": frame.to_parquet, "jsonl": lambda p: frame.to_json(p, orient="records", lines=True)}[
            suffix
        ](folder / f"all.{suffix}")
    expected = prepared(config(tmp_path, "local_text", text_file, max_samples=None))
    for name in (folder, folder / f"*.{suffix}"):
        got = prepared(config(tmp_path, "local_text", name, max_samples=None))
        assert np.array_equal(got[0], expected[0])


def test_a_short_run_reads_a_prefix_of_what_a_long_one_reads(tmp_path: Path) -> None:
    short, heldout = prepared(config(tmp_path / "a", "demo", "demo", max_samples=300))
    long, same = prepared(config(tmp_path / "b", "demo", "demo", max_samples=1500))
    assert np.array_equal(long[:300], short)
    assert np.array_equal(heldout, same)
    by_steps, _ = prepared(config(tmp_path / "a", "demo", "demo", max_samples=None, max_steps=10, batch_size=3))
    assert np.array_equal(by_steps, short[:30])


@pytest.mark.parametrize("kind", ["local_text", "pretokenized", "memmap"])
def test_heldout_sequences_are_the_same_for_every_max_samples_and_never_trained_on(
    tmp_path: Path, kind: str, text_file: Path
) -> None:
    path = text_file
    if kind != "local_text":
        ids = np.random.default_rng(0).integers(0, VOCABULARY, (400, LENGTH))
        path = tmp_path / ("ids.bin" if kind == "memmap" else "ids.parquet")
        ids.astype(np.uint16).tofile(path) if kind == "memmap" else pandas.DataFrame({"input_ids": list(ids)}).to_parquet(path)
    settings = {"tokens_dtype": "uint16"} if kind == "memmap" else {}
    few, heldout = prepared(config(tmp_path, kind, path, max_samples=30, **settings))
    many, same = prepared(config(tmp_path, kind, path, max_samples=None, **settings))
    assert np.array_equal(heldout, same)
    assert np.array_equal(many[:30], few)
    assert not as_set(heldout) & as_set(many)


def test_the_demos_heldout_files_are_not_trained_on(tmp_path: Path) -> None:
    train, heldout = prepared(config(tmp_path, "demo", "demo", max_samples=None, eval_samples=200, max_seq_length=64))
    assert len(train) > 40_000
    assert len(as_set(heldout) & as_set(train)) < 5  # licence headers and the like


def test_the_seed_changes_the_order_and_nothing_else_does(tmp_path: Path, text_file: Path) -> None:
    base, _ = prepared(config(tmp_path, "local_text", text_file))
    assert np.array_equal(base, prepared(config(tmp_path / "again", "local_text", text_file))[0])
    assert not np.array_equal(base, prepared(config(tmp_path, "local_text", text_file, shuffle_seed=1))[0])


def test_hub_sets_are_streamed_and_read_no_further_than_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    pandas.DataFrame({"text": WORDS * 40}).to_json(folder / "train.jsonl", orient="records", lines=True)
    pandas.DataFrame({"text": WORDS[:10]}).to_json(folder / "validation.jsonl", orient="records", lines=True)
    monkeypatch.setattr(token_cache, "WINDOW", 16)
    monkeypatch.setattr(data, "WINDOW", 16)
    cfg = config(tmp_path, "hub", folder, shuffle_buffer=10, max_samples=20)
    train, heldout = prepared(cfg)
    assert (len(train), len(heldout)) == (20, 5)
    state = json.loads(next((tmp_path / "cache").glob("*/state.json")).read_text())
    assert state["documents"] < 60, "of 4,800"
    _, validation = prepared(
        config(tmp_path, "hub", folder, shuffle_buffer=10, max_samples=20, eval_split="validation", eval_samples=1000)
    )
    text = demo_tokenizer().decode(validation.flatten())
    assert all(f"document {i}:" in text for i in range(9))
    assert "document 11:" not in text


def test_a_longer_run_extends_the_cache_and_equals_a_fresh_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "WINDOW", 16)
    monkeypatch.setattr(data, "WINDOW", 16)
    seen = []
    real = data.tokenized
    monkeypatch.setattr(
        data, "tokenized", lambda cfg, rows, tokenizer: real(cfg, (seen.append(1) or row for row in rows), tokenizer)
    )
    prepared(config(tmp_path, "demo", "demo", max_samples=100))
    first = len(seen)
    prepared(config(tmp_path, "demo", "demo", max_samples=90))
    assert len(seen) == first, "what is there is not read again"
    grown = prepared(config(tmp_path, "demo", "demo", max_samples=40_000))[0]
    fresh = prepared(config(tmp_path / "fresh", "demo", "demo", max_samples=40_000))[0]
    assert np.array_equal(grown, fresh)


def test_a_killed_preparation_goes_on_to_the_same_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(tmp_path, "demo", "demo", max_samples=3000)
    real = token_cache.write_state
    calls = []

    def dies(*arguments: object) -> None:
        calls.append(1)
        if len(calls) == 4:  # the tokens are on disk, the state is not
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(token_cache, "write_state", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare(cfg, demo_tokenizer, VOCABULARY)
    monkeypatch.setattr(token_cache, "write_state", real)
    resumed = prepared(cfg)[0]
    assert np.array_equal(resumed, prepared(config(tmp_path / "fresh", "demo", "demo", max_samples=3000))[0])


def _prepare(cfg: Config) -> bytes:
    return prepare(cfg, demo_tokenizer, VOCABULARY).train[:].tobytes()


def test_two_processes_at_once_prepare_the_same_tokens(tmp_path: Path) -> None:
    cfg = config(tmp_path, "demo", "demo", max_samples=200)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        one, other = pool.map(_prepare, [cfg, cfg])
    assert one == other == _prepare(config(tmp_path / "fresh", "demo", "demo", max_samples=200))


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_a_memmap_is_read_in_place_with_its_dtype_from_config_or_side_file(tmp_path: Path, dtype: str) -> None:
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (300, LENGTH)).astype(dtype)
    path = tmp_path / "ids.bin"
    with path.open("wb") as file:
        ids.tofile(file)
        np.zeros(3, dtype).tofile(file)  # a tail that fills no sequence
    by_config = prepared(config(tmp_path, "memmap", path, tokens_dtype=dtype, max_samples=None))
    (tmp_path / "ids.bin.json").write_text(json.dumps({"dtype": dtype}))
    by_side = prepared(config(tmp_path, "memmap", path, max_samples=None))
    assert np.array_equal(by_config[0], by_side[0])
    assert as_set(np.concatenate(by_config)) == as_set(ids)
    assert len(by_config[0]) == 295
    assert not (tmp_path / "cache").exists()


def test_pretokenized_rows_are_cut_one_by_one_and_never_joined(tmp_path: Path) -> None:
    rows = [[i] * (LENGTH * (i % 3) + 5) for i in range(60)]
    pandas.DataFrame({"ids": rows}).to_json(tmp_path / "ids.jsonl", orient="records", lines=True)
    train, heldout = prepared(config(tmp_path, "pretokenized", tmp_path / "ids.jsonl", tokens_column="ids", max_samples=None))
    everything = np.concatenate([train, heldout])
    assert sorted(everything[:, 0].tolist()) == sorted(i for i in range(60) for _ in range(i % 3))
    assert (everything == everything[:, :1]).all()
    datasets.Dataset.from_dict({"ids": rows}).save_to_disk(tmp_path / "saved")
    saved, _ = prepared(config(tmp_path, "pretokenized", tmp_path / "saved", tokens_column="ids", max_samples=None))
    assert np.array_equal(saved, train)


def test_needed_samples_is_the_smaller_of_max_samples_and_max_steps(tmp_path: Path) -> None:
    for settings, expected in [
        (dict(max_samples=100), 100), (dict(max_samples=None), None), (dict(max_samples=None, max_steps=3), 24), (dict(max_samples=7, max_steps=3), 7),
    ]:  # fmt: skip
        assert needed_samples(config(tmp_path, "demo", "demo", batch_size=4, grad_acc_steps=2, **settings)) == expected


def test_memory_stays_flat_as_max_samples_grows(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (30_000, 512)).tolist()
    datasets.Dataset.from_dict({"input_ids": ids}).to_parquet(tmp_path / "ids.parquet")
    code = """
import resource, sys
from pathlib import Path
from test_data import *
cfg = config(Path(sys.argv[1]) / sys.argv[2], "pretokenized", Path(sys.argv[1]) / "ids.parquet", max_samples=int(sys.argv[2]), max_seq_length=512)
sets = prepare(cfg, demo_tokenizer, VOCABULARY)
assert len(sets.train) == int(sys.argv[2])
for start in range(0, len(sets.train), 8):
    sets.train[start:start + 8]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
    peaks = {}
    for samples in (5_000, 29_000):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), str(samples)], capture_output=True, text=True, cwd=Path(__file__).parent
        )
        assert done.returncode == 0, done.stderr
        peaks[samples] = int(done.stdout)
    more_tokens = 24_000 * 512
    # The files themselves (2 bytes a token, two of 4) are mapped and count while their pages are in memory; a list costs 8 and more.
    assert peaks[29_000] - peaks[5_000] < more_tokens * 6


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (dict(text_column="body"), ["text_column=body", "text, n"]),
        (dict(text_column="n"), ["text_column=n", "int", "not text"]),
        (dict(max_seq_length=4096), ["max_seq_length=4096", "eval_samples=5", "lower"]),
        (dict(eval_samples=100_000), ["eval_samples=100000", "none is left"]),
        (dict(dataset_name="/nowhere/*.txt"), ["/nowhere/*.txt", "no such file"]),
        (dict(dataset_kind="pretokenized"), ["tokens_column=input_ids", "text, n"]),
        (dict(dataset_kind="pretokenized", tokens_column="text"), ["tokens_column=text", "row 0", "token ids"]),
        (dict(dataset_kind="pretokenized", tokens_column="n"), ["tokens_column=n", "token ids"]),
        (
            dict(dataset_kind="hub", dataset_name="nobody/nothing"),
            ["dataset_name=nobody/nothing", "cannot be loaded", "HF_HUB_OFFLINE=1"],
        ),
        (dict(dataset_kind="memmap", dataset_name="/nowhere.bin"), ["/nowhere.bin", "no such file"]),
        (dict(dataset_kind="memmap"), ["tokens_dtype=null", "set tokens_dtype"]),
    ],
    ids=lambda v: ",".join(f"{k}={x}" for k, x in v.items()) if isinstance(v, dict) else None,
)
def test_data_that_cannot_serve_is_refused_with_names_and_numbers(
    tmp_path: Path, text_file: Path, settings: dict, parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refusal(
        config(
            tmp_path,
            **({"kind": settings.pop("dataset_kind", "local_text"), "name": settings.pop("dataset_name", text_file)} | settings),
        )
    )
    for part in parts:
        assert part in message


def test_a_wrong_split_or_mixed_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.csv").write_text("text\nb\n")
    assert ".csv, .txt" in refusal(config(tmp_path, "local_text", tmp_path / "*.*"))
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "train.csv").write_text("text\nb\n")
    message = refusal(config(tmp_path, "hub", folder, dataset_split="trian"))
    assert "dataset_split=trian" in message


@pytest.mark.parametrize("kind", ["pretokenized", "memmap"])
def test_ids_beyond_the_vocabulary_are_refused(tmp_path: Path, kind: str) -> None:
    ids = np.random.default_rng(0).integers(0, 100, (50, LENGTH))
    ids[30, 3] = 5000
    path = tmp_path / ("ids.bin" if kind == "memmap" else "ids.parquet")
    ids.astype(np.uint16).tofile(path) if kind == "memmap" else pandas.DataFrame({"input_ids": list(ids)}).to_parquet(path)
    message = refusal(config(tmp_path, kind, path, tokens_dtype="uint16", max_samples=None))
    assert "5000" in message
    assert "0 to 4095" in message


def test_preparing_the_demo_imports_no_hub_library(tmp_path: Path) -> None:
    code = "import sys; from sae_transcoder import data; assert not {'torch', 'datasets', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
