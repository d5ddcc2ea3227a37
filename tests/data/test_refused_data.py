"""The data that is refused, and what the messages say."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from helpers.characters import EOS, LENGTH, VOCABULARY, Characters, settings
from helpers.command_line import composed
from helpers.token_data import flat, hub_folder, id_rows, jsonl, refusal, sets
from sae_transcoder.config import ConfigError
from sae_transcoder.data import sources
from sae_transcoder.preflight.plan import make_plan


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


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"splits": ['])
def test_a_saved_set_with_a_damaged_list_of_splits_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset_dict.json").write_text(content)
    assert "dataset_dict.json is damaged" in refusal(settings(tmp_path, dataset_name=str(tmp_path)))


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
    assert "separator=null: the tokenizer of tests/letters has no end, begin or separator token; set separator=none" in message


@pytest.mark.parametrize(("kind", "held"), [("local_text", 50), ("local_text", 3), ("pretokenized", 3), ("memmap", 3)])
def test_data_that_leaves_nothing_to_train_on_is_refused_with_its_size(tmp_path: Path, kind: str, held: int) -> None:
    name = jsonl(tmp_path / "c.jsonl", [{"text": "x" * 23, "input_ids": list(range(24))}])
    if kind == "memmap":
        name = flat(tmp_path / "ids.bin", np.arange(24, dtype=np.uint16), dtype="uint16")
    message = refusal(settings(tmp_path, dataset_name=name, dataset_kind=kind, eval_samples=held))
    assert f"3 sequences of max_seq_length={LENGTH} tokens" in message
    assert f"and eval_samples={held} are to be held out: none is left" in message
    assert "eval_samples, for example to eval_samples=1" in message


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


@pytest.mark.parametrize("kind", ["local_text", "memmap"])
def test_a_file_that_is_not_there_is_told_before_anything_that_takes_long_is_imported(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sae_transcoder.language_model.sizes", None)  # an import of it fails
    cfg = composed("experiment=demo", f"dataset_kind={kind}", f"dataset_name={tmp_path}/none.txt", f"save_dir={tmp_path}")
    with pytest.raises(ConfigError, match="no such file"):
        make_plan(cfg)
