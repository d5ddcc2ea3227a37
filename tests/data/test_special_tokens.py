"""The begin token of each sequence, the separator after each document, special tokens inside texts."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from helpers.characters import LENGTH, settings
from helpers.token_data import documents, id_rows, jsonl, refusal, sets
from sae_transcoder.config import SpecialTokensInText
from sae_transcoder.config.run_length import run_length
from sae_transcoder.preflight.likely_mistakes import data_warnings

# What the tokenizer_config.json and tokenizer.json of each model say of special tokens, by hand: the special tokens that it names and the
# template by which it encodes a text; None: it adds nothing.
FAMILIES: dict[str, tuple[dict[str, str], str | None]] = {
    "gemma2": (dict(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"), "<bos> $A"),
    "gemma3": (dict(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"), "<bos> $A"),
    "llama3": (dict(bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>"), "<|begin_of_text|> $A"),
    "qwen3": (dict(eos_token="<|im_end|>", pad_token="<|endoftext|>"), None),
    "pythia": (dict(bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>"), None),
    "gpt2": (dict(bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>"), None),
    "smollm2": (dict(bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>"), None),
    "bert": (
        dict(cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]"),
        "[CLS] $A [SEP]",
    ),
}
SEPARATORS = {"gemma2": "<eos>", "gemma3": "<eos>", "llama3": "<|end_of_text|>", "qwen3": "<|im_end|>", "bert": "[SEP]"}


def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    """A tokenizer of characters with the family's special tokens and template."""
    named, template = FAMILIES[family]
    special = list(dict.fromkeys(named.values()))
    letters = [*"abcdefghijklmnopqrstuvwxyz <|>_"]
    vocabulary = {token: i for i, token in enumerate([*special, *letters])}
    bare = Tokenizer(models.WordLevel(vocabulary, unk_token=named.get("unk_token", special[0])))
    bare.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # type: ignore[assignment]
    bare.add_special_tokens(special)
    if template is not None:
        ids = [(token, vocabulary[token]) for token in special if token in template]
        bare.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=bare, **named)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sequence_begins_as_the_familys_tokenizer_begins_a_text(tmp_path: Path, family: str) -> None:
    tokenizer, texts = tokenizer_of(family), [t for t in documents(60) if len(t) > LENGTH]
    name = jsonl(tmp_path / "c.jsonl", [{"text": t} for t in texts])
    got = sets(settings(tmp_path, dataset_name=name, max_samples=None, eval_samples=1), tokenizer, 100)
    begin = list(got.origin.begin)
    encoded = tokenizer("abc")["input_ids"]
    assert encoded[: len(begin)] == begin
    assert len(begin) == (FAMILIES[family][1] is not None)
    separator = tokenizer.convert_tokens_to_ids(SEPARATORS.get(family, "<|endoftext|>"))
    assert got.origin.separator == (separator,)
    first_of_a_text = {tuple(tokenizer(t)["input_ids"][:LENGTH]) for t in texts}
    assert (*begin, *got.train.rows[0].tolist()) in first_of_a_text, "the first sequence of the split on disk"
    assert all(row.tolist()[: len(begin)] == begin for rows in (got.train[:], got.heldout[:]) for row in rows)


@pytest.mark.parametrize("prepend_bos", [None, True, False])
def test_prepend_bos_puts_the_begin_token_before_each_sequence_or_none(
    tmp_path: Path, corpus: str, prepend_bos: bool | None
) -> None:
    for family, alone in (("gemma2", True), ("pythia", False)):
        tokenizer = tokenizer_of(family)
        expected = (tokenizer.bos_token_id,) if (alone if prepend_bos is None else prepend_bos) else ()
        got = sets(settings(tmp_path / family, dataset_name=corpus, prepend_bos=prepend_bos), tokenizer, 100)
        assert got.origin.begin == expected
        assert got.train[:].shape == (1100, LENGTH)
        assert got.train.rows.shape[1] == LENGTH - len(expected)


def test_a_begin_token_that_the_tokenizer_lacks_is_refused(tmp_path: Path, corpus: str) -> None:
    message = refusal(settings(tmp_path, dataset_name=corpus, prepend_bos=True), tokenizer_of("qwen3"), 100)
    assert message == "prepend_bos=True: the tokenizer of tests/letters has no begin token; leave prepend_bos out"


@pytest.mark.parametrize(("separator", "ids"), [("7", (7,)), ("none", ())])
def test_the_separator_is_the_id_that_is_set(tmp_path: Path, corpus: str, separator: str, ids: tuple[int, ...]) -> None:
    got = sets(settings(tmp_path, dataset_name=corpus, separator=separator, max_samples=None))
    assert got.origin.separator == ids
    assert ((got.train[:] == 7).sum() > 300) == bool(ids)


def test_a_separator_that_the_model_lacks_is_refused(tmp_path: Path, corpus: str) -> None:
    assert "has the ids 0 to 1999; 2000 is none" in refusal(settings(tmp_path, dataset_name=corpus, separator="2000"))


@pytest.mark.parametrize(("as_text", "count"), [(SpecialTokensInText.as_text, 0), (SpecialTokensInText.parse, 40)])
def test_a_special_token_inside_a_text_is_text_unless_it_is_to_be_parsed(
    tmp_path: Path, as_text: SpecialTokensInText, count: int
) -> None:
    name = jsonl(tmp_path / "c.jsonl", [{"text": f"abc <|endoftext|> def {'x' * 50}"}] * 40)
    cfg = settings(tmp_path, dataset_name=name, special_tokens_in_text=as_text, separator="none", max_samples=None, eval_samples=1)
    got = sets(cfg, tokenizer_of("gpt2"), 100)
    found = (got.train.rows == tokenizer_of("gpt2").eos_token_id).sum()
    assert found == pytest.approx(count, abs=1)


def test_stored_ids_are_taken_as_they_are_and_a_begin_token_that_they_lack_is_told(tmp_path: Path) -> None:
    with_begin = jsonl(tmp_path / "with.jsonl", [{"input_ids": [5, *row[: LENGTH - 1]]} for row in id_rows() if len(row) >= LENGTH])
    without = jsonl(tmp_path / "without.jsonl", [{"input_ids": row} for row in id_rows()])
    for name, begin in ((with_begin, (5,)), (without, ())):
        cfg = settings(tmp_path, dataset_kind="pretokenized", dataset_name=name, prepend_bos=True, eval_samples=2)
        got = sets(cfg)
        assert got.origin.begin == begin
        warnings = data_warnings(cfg, run_length(cfg, 1100), got.origin)
        assert [w.startswith("prepend_bos=True: ") for w in warnings] == ([] if begin else [True])
    cfg.separator = "7"
    assert any(w.startswith("separator=7: the ids of ") for w in data_warnings(cfg, run_length(cfg, 1100), got.origin))


def test_what_stands_around_texts_is_kept_apart_in_the_cache(tmp_path: Path, corpus: str) -> None:
    for change in ({}, {"separator": "7"}, {"special_tokens_in_text": SpecialTokensInText.parse}):
        sets(settings(tmp_path, dataset_name=corpus, **change))
    assert len(list((tmp_path / "cache").glob("*/state.json"))) == 3
