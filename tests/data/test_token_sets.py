"""The token sequences: what they hold and their order."""

import math
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from helpers.characters import EOS, LENGTH, Characters, characters, settings
from helpers.token_data import LEFT_OUT, WINDOW, documents, jsonl, packed, sets, shuffled, trained_on, windowed
from sae_transcoder.config.run_length import needed_samples


def test_text_is_packed_with_a_separator_after_each_document_and_read_in_shuffled_windows(tmp_path: Path, corpus: str) -> None:
    got = sets(settings(tmp_path, dataset_name=corpus, max_samples=None))
    rows = trained_on([characters(t) for t in shuffled(documents())])
    assert len(rows) > 3 * WINDOW
    np.testing.assert_array_equal(got.train[:], windowed(rows))


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
    ids = [[*bpe.encode(t, add_special_tokens=False).ids, tokenizer.eos_token_id] for t in shuffled(documents())]
    first = math.ceil(sum(map(len, ids[:LEFT_OUT])) / LENGTH)
    np.testing.assert_array_equal(got.train[:], windowed(packed(ids)[first:]))


@pytest.mark.parametrize(("present", "used"), [("eos bos sep", "eos"), ("bos sep", "bos"), ("sep", "sep")])
def test_the_separator_is_the_end_token_else_the_beginning_else_the_separating_one(
    tmp_path: Path, corpus: str, present: str, used: str
) -> None:
    tokenizer, ids = Characters(), {"eos": 1, "bos": 2, "sep": 3}
    for name, value in ids.items():
        setattr(tokenizer, f"{name}_token_id", value if name in present.split() else None)
    got = sets(settings(tmp_path, dataset_name=corpus, max_samples=None), tokenizer)
    assert got.origin.separator == (ids[used],)
    assert (got.train[:] == ids[used]).sum() == pytest.approx(400 - LEFT_OUT, abs=1)


def test_a_short_run_reads_a_prefix_of_what_a_long_one_reads(tmp_path: Path, corpus: str) -> None:
    cfg = dict(dataset_name=corpus)
    whole = sets(settings(tmp_path / "whole", **cfg, max_samples=None))
    for samples in (1, 700, 1024, 1500):
        for folder in (tmp_path / str(samples), tmp_path / "grown"):
            part = sets(settings(folder, **cfg, max_samples=samples))
            assert len(part.train) == samples
            np.testing.assert_array_equal(part.train[:], whole.train[:samples])
            np.testing.assert_array_equal(part.heldout[:], whole.heldout[:])


def test_a_long_document_does_not_fill_a_batch(tmp_path: Path) -> None:
    name = jsonl(tmp_path / "two.jsonl", [{"text": letter * (WINDOW // 2) * LENGTH} for letter in "abc"])
    train = sets(settings(tmp_path, dataset_name=name, max_samples=None, eval_samples=1)).train
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
    assert got.origin.heldout_documents <= (80 * 3) // 10
    for rows in (got.heldout[:], got.train[:]):
        assert not np.any((rows[:, 1:] == EOS) & (rows[:, :-1] == EOS))
