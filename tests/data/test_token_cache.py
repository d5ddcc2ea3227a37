"""The cache of token sequences: what it keeps, how it goes on after a failure, what is shared."""

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

import numpy as np
import pytest

from helpers import HANGS, ROOT, TESTS
from helpers.characters import VOCABULARY, Characters, settings
from helpers.token_data import (
    documents,
    hub_folder,
    id_rows,
    jsonl,
    refusal,
    sets,
    untouched,
)
from sae_transcoder.config import Config
from sae_transcoder.data import sources
from sae_transcoder.data.token_sets import heldout_sequences, prepare


def written(cfg: Config) -> dict[str, bytes]:
    """{file: content} of the only cached set."""
    (folder,) = {p.parent for p in Path(str(cfg.cache_dir)).glob("*/state.json")}
    return {name: (folder / name).read_bytes() for name in ("tokens.bin", "state.json")}


def test_a_prepared_set_is_read_again_without_source_tokenizer_or_a_word(
    tmp_path: Path, corpus: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    cfg = settings(tmp_path, dataset_name=corpus)
    first = sets(cfg)
    capfd.readouterr()
    monkeypatch.setattr(sources, "open_rows", untouched)
    again = prepare(cfg, Characters, VOCABULARY)
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
    heldout_sequences(cfg, Characters, VOCABULARY)
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
from sae_transcoder.data.token_sets import heldout_sequences, prepare
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
    limit = time.monotonic() + HANGS
    # state.json is written once before the first sequences, with the number of documents.
    while not any(json.loads(path.read_text())["sequences"] for path in (tmp_path / "a/cache").glob("*/state.json")):
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
    printed = [p.communicate(timeout=HANGS)[0].split() for p in processes]
    assert [p.returncode for p in processes] == [0, 0]
    assert printed[0][1] == printed[1][1]
    assert sorted(int(p[0]) for p in printed) == [0, 2 * len(documents())]  # to hold some out, and to train on the others


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
from sae_transcoder.data.token_sets import heldout_sequences, prepare
from pathlib import Path
for samples in (4000, 16000):
    cfg = settings(Path({folder!r}) / str(samples), dataset_kind="hub", dataset_name={name!r}, max_samples=samples,
                   max_seq_length=256, shuffle_buffer=100)
    assert len(prepare(cfg, Characters, 2000).train) == samples
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
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


@pytest.mark.parametrize("read", [prepare, heldout_sequences])
def test_the_tokenizer_is_loaded_once(tmp_path: Path, corpus: str, read: Any) -> None:
    loaded = []
    read(settings(tmp_path, dataset_name=corpus), lambda: loaded.append(Characters()) or loaded[-1], VOCABULARY)
    assert len(loaded) == 1
