"""Of how many sequences a run reads some, and that no more is tokenised than is needed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.characters import HELD, LENGTH, Characters, settings
from helpers.token_data import documents, hub_folder, jsonl, sets
from sae_transcoder.data import token_ids
from sae_transcoder.data.token_sets import Supply, TokenSets
from sae_transcoder.process import progress


def all_of(cfg_folder: Path, name: str) -> TokenSets:
    return sets(settings(cfg_folder, dataset_name=name, max_samples=None))


def test_of_files_it_is_known_of_how_many_sequences_some_are_read(tmp_path: Path, corpus: str) -> None:
    everything = all_of(tmp_path / "all", corpus)
    assert everything.supply == Supply(len(everything.train), exact=True)
    some = sets(settings(tmp_path / "some", dataset_name=corpus, max_samples=1100))
    assert some.supply is not None
    assert not some.supply.exact
    assert some.supply.sequences == pytest.approx(len(everything.train), rel=0.2), "by the documents read so far"
    small = sets(settings(tmp_path / "all", dataset_name=corpus, max_samples=5))
    assert small.supply == everything.supply, "once all was read"


def test_of_a_stream_and_a_mixture_it_is_not_known(tmp_path: Path, corpus: str) -> None:
    stream = hub_folder(tmp_path / "set")
    assert sets(settings(tmp_path / "a", dataset_name=stream, dataset_kind="hub", max_samples=5)).supply is None
    other = jsonl(tmp_path / "other.jsonl", [{"text": text} for text in documents(400, seed=1)])
    assert sets(settings(tmp_path / "b", dataset_name=[corpus, other], max_samples=5)).supply is None


def test_a_cache_of_a_version_that_did_not_count_is_kept_and_counted(tmp_path: Path, corpus: str) -> None:
    cfg = settings(tmp_path, dataset_name=corpus, max_samples=5)
    first = sets(cfg)
    (state,) = Path(str(cfg.cache_dir)).glob("*/state.json")
    state.write_text(state.read_text().replace(', "of_documents": 400', ""))
    again = sets(cfg, tokenizer := Characters())
    assert (again.supply, tokenizer.texts) == (first.supply, 0)
    assert '"of_documents": 400' in state.read_text()


def test_documents_beyond_those_held_out_are_not_tokenised_to_be_counted(tmp_path: Path) -> None:
    texts = ["".join(chr(97 + (i + j) % 26) for j in range(LENGTH)) for i in range(2000)]
    name = jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    from sae_transcoder.data.token_sets import heldout_sequences

    tokenizer = Characters()
    heldout, origin = heldout_sequences(settings(tmp_path, dataset_name=name), lambda: tokenizer, 2000)
    assert len(heldout) == HELD
    assert origin.heldout_documents is not None
    assert tokenizer.texts <= origin.heldout_documents + token_ids.TOKENIZE


def test_long_texts_are_tokenised_few_at_a_time_to_the_same_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: str
) -> None:
    usual = all_of(tmp_path / "usual", corpus)
    monkeypatch.setattr(token_ids, "CHARACTERS", 500)
    few = all_of(tmp_path / "few", corpus)
    np.testing.assert_array_equal(few.train[:], usual.train[:])
    assert [len(batch) for batch in token_ids.batches(["a" * 300, None, "b" * 300, "c", "d" * 600])] == [3, 2]


def test_progress_counts_what_is_needed_and_of_whole_files_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY", -1.0)
    texts = ["x" * (5000 * LENGTH), *documents(20)]
    name = jsonl(tmp_path / "long.jsonl", [{"text": text} for text in texts])
    cfg = settings(tmp_path, dataset_name=name, max_samples=8, eval_samples=4)
    sets(cfg)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("tokenising") and "to hold" not in line]
    counts = [int(line.split(" of ")[0].split()[-1].replace(",", "")) for line in lines]
    totals = {line.split(" of ")[1].split(" sequences")[0] for line in lines}
    assert len(totals) == 1
    assert max(counts) <= int(totals.pop().replace(",", ""))
    sets(replace(cfg, max_samples=None, cache_dir=str(tmp_path / "other")))
    assert " of 21 documents" in capfd.readouterr().err
