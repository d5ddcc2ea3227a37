"""Which documents are held out, and how many sequences come from each."""

from pathlib import Path

import numpy as np
import pytest

from helpers.characters import EOS, HELD, LENGTH, Characters, settings
from helpers.token_data import LEFT_OUT, documents, flat, hub_folder, jsonl, pieces, refusal, sets, shuffled, untouched
from sae_transcoder.config import Config
from sae_transcoder.config.run_length import run_length
from sae_transcoder.data import sources
from sae_transcoder.data.token_sets import TokenSets, heldout_sequences, nothing_left, prepare
from sae_transcoder.preflight.likely_mistakes import data_warnings


def marked(number: int, sequences: int) -> str:
    """A text that fills so many sequences with its end, of characters that no other has."""
    return chr(200 + number) * (sequences * LENGTH - 1)


def local(tmp_path: Path, texts: list[str], **given: object) -> TokenSets:
    name = jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    return sets(settings(tmp_path, dataset_name=name, **{"max_samples": None, **given}))


def warnings_of(cfg: Config, got: TokenSets) -> list[str]:
    return data_warnings(cfg, run_length(cfg, len(got.train)), got.origin)


def documents_in(rows: np.ndarray) -> list[set[int]]:
    """The characters of each sequence."""
    return [set(row.tolist()) - {EOS} for row in rows]


def test_no_document_is_held_out_in_part_and_trained_on_in_part(tmp_path: Path) -> None:
    got = local(tmp_path, [marked(i, 1 + i % 7) for i in range(300)])
    held_out, trained = (set.union(*documents_in(rows)) for rows in (got.heldout[:], got.train[:]))
    assert len(held_out) == got.origin.heldout_documents
    assert not held_out & trained
    assert len(trained) >= 300 - 300 // 10 - 1


def test_where_there_are_enough_documents_each_gives_one_sequence(tmp_path: Path) -> None:
    got = local(tmp_path, [marked(i, 3) for i in range(600)])
    assert got.origin.heldout_documents == HELD == len(got.heldout)
    assert all(len(of_row) == 1 for of_row in documents_in(got.heldout[:]))


def test_a_tenth_of_few_documents_is_held_out_and_each_gives_its_share(tmp_path: Path) -> None:
    got = local(tmp_path, [marked(i, 40) for i in range(100)])
    assert got.origin.heldout_documents == 10
    assert {len(set(of_row)) for of_row in documents_in(got.heldout[:])} == {1}
    counts = np.unique([min(of_row) for of_row in documents_in(got.heldout[:])], return_counts=True)[1]
    assert counts.tolist() == [HELD // 10] * 10


def test_pieces_come_from_all_over_long_documents(tmp_path: Path) -> None:
    ramp = "".join(chr(200 + i // LENGTH) for i in range(500 * LENGTH))
    got = local(tmp_path, [ramp] * 30, eval_samples=3)
    assert len({int(row[0]) for row in got.heldout[:]}) == 3


def test_short_documents_are_packed_until_the_sequences_are_full(tmp_path: Path) -> None:
    texts = documents(400, seed=2)
    short = [text[:5] for text in texts]
    got = local(tmp_path, short, eval_samples=20)
    taken = shuffled(short)[: got.origin.heldout_documents]
    assert pieces(got.heldout[:])[: len(taken) - 1] == taken[:-1]
    assert len(got.heldout) == 20


def test_where_all_documents_would_be_held_out_their_sequences_are_divided_and_the_run_says_so(tmp_path: Path) -> None:
    cfg = dict(max_samples=None, eval_samples=4)
    got = local(tmp_path, [marked(0, 30)], **cfg)
    assert (len(got.heldout), len(got.train)) == (4, 26)
    assert got.origin.divided
    assert got.origin.heldout_documents == 1
    name = str(tmp_path / "texts.jsonl")
    alone, origin = heldout_sequences(settings(tmp_path, dataset_name=name, **cfg), Characters, 2000)
    np.testing.assert_array_equal(alone[:], got.heldout[:])
    assert origin.divided
    few, divided = warnings_of(settings(tmp_path, dataset_name=name, **cfg), got)
    assert divided.startswith("eval_samples=4: ")
    assert few.startswith(f"dataset_name={name}: ")


def test_a_document_that_is_most_of_the_data_is_divided_and_not_held_out_whole(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        got = local(tmp_path / str(seed), [marked(0, 300), *(marked(i, 1) for i in range(1, 9))], eval_samples=4, shuffle_seed=seed)
        assert len(got.train) >= 300


def test_fewer_sequences_than_were_asked_for_are_told(tmp_path: Path) -> None:
    name = jsonl(tmp_path / "texts.jsonl", [{"text": marked(i, 3)} for i in range(40)])
    cfg = settings(tmp_path, dataset_name=name, max_samples=500, eval_samples=4)
    assert "500 sequences are asked for (max_samples), it has 108 to train on" in warnings_of(cfg, sets(cfg))[0]


def test_of_two_documents_one_is_held_out(tmp_path: Path) -> None:
    got = local(tmp_path, [marked(i, 30) for i in range(2)], eval_samples=4)
    assert not got.origin.divided
    assert (len(got.heldout), len(got.train)) == (4, 30)


def test_a_split_of_its_own_gives_sequences_of_all_its_documents(tmp_path: Path) -> None:
    name = hub_folder(tmp_path / "set", validation=[marked(i, 2 + i) for i in range(10)])
    got = sets(settings(tmp_path, dataset_kind="hub", dataset_name=name, eval_split="validation"))
    assert got.origin.heldout_documents == 10
    assert max(np.unique([min(of_row) for of_row in documents_in(got.heldout[:])], return_counts=True)[1]) == 6


def test_held_out_sequences_do_not_depend_on_the_length_of_the_run(tmp_path: Path, corpus: str) -> None:
    held_out = [sets(settings(tmp_path / str(n), dataset_name=corpus, max_samples=n)).heldout[:].tobytes() for n in (1, 900, None)]
    assert len(set(held_out)) == 1


def test_other_numbers_held_out_share_the_tokens_to_train_on(tmp_path: Path, corpus: str) -> None:
    for held in (HELD, 7):
        got = sets(settings(tmp_path, dataset_name=corpus, eval_samples=held))
        assert len(got.heldout) == held
    assert len(list((tmp_path / "cache").glob("*/state.json"))) == 1
    assert got.origin.heldout_documents == 8


def test_a_document_that_is_trained_on_and_held_out_is_counted(tmp_path: Path) -> None:
    texts = [marked(i, 3) for i in range(60)]
    name = hub_folder(tmp_path / "set", validation=texts[:5])
    jsonl(tmp_path / "set/train-00000-of-00003.jsonl", [{"text": t, "n": i} for i, t in enumerate(texts)])
    cfg = settings(tmp_path, dataset_kind="hub", dataset_name=name, eval_split="validation", eval_samples=9, max_samples=None)
    got = sets(cfg)
    assert got.origin.copies == 5
    assert "5 documents to train on are held out too" in warnings_of(cfg, got)[0]
    twice = local(tmp_path / "twice", texts * 2, eval_samples=9)
    assert 0 < twice.origin.copies <= 9
    assert local(tmp_path / "once", texts, eval_samples=9).origin.copies == 0


def test_rows_of_ids_are_documents(tmp_path: Path) -> None:
    rows = [[i] * (3 * LENGTH + 2) for i in range(600)]
    name = jsonl(tmp_path / "ids.jsonl", [{"input_ids": row} for row in rows])
    got = prepare(settings(tmp_path, dataset_kind="pretokenized", dataset_name=name, max_samples=None), untouched, 2000)
    assert got.origin.heldout_documents == HELD
    assert len(got.train) == (600 - HELD) * 3


def test_a_memmap_has_no_documents_that_are_known(tmp_path: Path) -> None:
    name = flat(tmp_path / "ids.bin", np.arange(300 * LENGTH, dtype=np.uint16) % 999, dtype="uint16")
    got = prepare(settings(tmp_path, dataset_kind="memmap", dataset_name=name), untouched, 2000)
    assert got.origin.heldout_documents is None


def test_a_cut_off_file_of_held_out_sequences_is_written_anew(tmp_path: Path, corpus: str) -> None:
    first = sets(settings(tmp_path, dataset_name=corpus)).heldout[:]
    (path,) = (tmp_path / "cache").glob("*/heldout.npz")
    path.write_bytes(path.read_bytes()[:100])
    np.testing.assert_array_equal(sets(settings(tmp_path, dataset_name=corpus)).heldout[:], first)


def test_held_out_documents_are_read_once(tmp_path: Path, corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sets(settings(tmp_path, dataset_name=corpus))
    monkeypatch.setattr(sources, "open_rows", untouched)
    again = sets(settings(tmp_path, dataset_name=corpus))
    np.testing.assert_array_equal(again.heldout[:], first.heldout[:])
    assert again.origin == first.origin
    assert first.origin.heldout_documents == LEFT_OUT


def test_more_sequences_than_there_are_to_hold_out_leave_nothing_to_train_on(tmp_path: Path) -> None:
    name = jsonl(tmp_path / "texts.jsonl", [{"text": marked(i, 2)} for i in range(3)])
    assert refusal(settings(tmp_path, dataset_name=name, eval_samples=16)) == (
        f"dataset_name={name}: 6 sequences of max_seq_length=8 tokens in all, and eval_samples=16 are to be held out: none is left to train on; "
        "give more text, or lower max_seq_length or eval_samples, for example to eval_samples=1"
    )
    assert len(sets(settings(tmp_path, dataset_name=name, eval_samples=1)).train) > 0  # as told
    one = jsonl(tmp_path / "one.jsonl", [{"text": marked(0, 1)}])
    assert refusal(settings(tmp_path, dataset_name=one, eval_samples=1)).endswith("give more text, or lower max_seq_length")
    with_split = settings(tmp_path, dataset_name=name, eval_split="validation")
    assert nothing_left(with_split, 0).endswith(" in all: none is left to train on; give more text, or lower max_seq_length")
