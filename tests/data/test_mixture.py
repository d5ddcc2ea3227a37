"""Data sets of several parts: the seeded choice, its shares, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.characters import Characters, settings
from helpers.token_data import documents, jsonl, refusal, sets
from sae_transcoder.api import load_config
from sae_transcoder.config import ConfigError, checks
from sae_transcoder.data.token_sets import heldout_sequences
from sae_transcoder.preflight.side_by_side import check_shared


@pytest.fixture
def parts(tmp_path: Path) -> list[str]:
    """Two files, one of lower-case and one of upper-case letters."""
    texts = documents(600, seed=1)
    return [
        jsonl(tmp_path / "lower.jsonl", [{"text": text} for text in texts]),
        jsonl(tmp_path / "upper.jsonl", [{"text": text.upper()} for text in texts]),
    ]


def share_of_upper(rows: np.ndarray) -> float:
    return float(np.isin(rows, [300 + ord(c) for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]).mean())


def test_documents_are_drawn_by_weight_and_each_parts_share_is_told(tmp_path: Path, parts: list[str]) -> None:
    got = sets(settings(tmp_path, dataset_name=parts, dataset_weights=[3.0, 1.0], max_samples=None))
    assert list(got.origin.shares) == parts
    assert sum(got.origin.shares.values()) == pytest.approx(1)
    assert got.origin.shares[parts[1]] == pytest.approx(0.25, abs=0.05)
    assert got.origin.shares[parts[1]] == pytest.approx(share_of_upper(got.train[:]), abs=0.01)
    assert got.origin.heldout_shares[parts[1]] == pytest.approx(share_of_upper(got.heldout[:]), abs=0.02)


def test_a_mixture_without_weights_is_even_and_ends_with_the_first_part_that_ends(tmp_path: Path, parts: list[str]) -> None:
    short = jsonl(tmp_path / "short.jsonl", [{"text": "Z" * 100}] * 100)
    got = sets(settings(tmp_path, dataset_name=[parts[0], short], max_samples=None))
    alone = sets(settings(tmp_path, dataset_name=parts[0], max_samples=None))
    assert len(got.train) < len(alone.train)
    assert share_of_upper(got.train[:]) == pytest.approx(0.5, abs=0.12)


def test_a_mixture_is_the_same_at_every_call_and_a_short_run_reads_a_prefix_of_it(tmp_path: Path, parts: list[str]) -> None:
    whole = sets(settings(tmp_path / "a", dataset_name=parts, max_samples=None))
    for folder, samples in (("b", 1100), ("c", 30), ("c", 2000)):
        got = sets(settings(tmp_path / folder, dataset_name=parts, max_samples=samples))
        np.testing.assert_array_equal(got.train[:], whole.train[:samples])
        np.testing.assert_array_equal(got.heldout[:], whole.heldout[:])
    other = sets(settings(tmp_path / "a", dataset_name=parts, shuffle_seed=7))
    assert not np.array_equal(other.train[:], whole.train[:1100])


def test_an_evaluation_holds_out_the_same_of_a_mixture(tmp_path: Path, parts: list[str]) -> None:
    cfg = settings(tmp_path, dataset_name=parts, dataset_weights=[1.0, 5.0])
    rows, origin = heldout_sequences(cfg, Characters, 2000)
    np.testing.assert_array_equal(rows[:], sets(cfg).heldout[:])
    assert origin.heldout_shares[parts[1]] > 0.6


def test_weights_have_a_cache_of_their_own(tmp_path: Path, parts: list[str]) -> None:
    for weights in (None, [1.0, 2.0]):
        sets(settings(tmp_path, dataset_name=parts, dataset_weights=weights))
    assert len(list((tmp_path / "cache").glob("*/state.json"))) == 2


def test_a_part_that_is_not_there_is_named(tmp_path: Path, parts: list[str]) -> None:
    missing = str(tmp_path / "none.jsonl")
    assert f"dataset_name={missing}: no such file" in refusal(settings(tmp_path, dataset_name=[parts[0], missing]))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(dataset_name=["a", "b"], dataset_weights=[1.0]), "must be 2 numbers above 0, one for each part"),
        (dict(dataset_name=["a", "b"], dataset_weights=[1.0, 0.0]), "must be 2 numbers above 0"),
        (dict(dataset_name=["a", "b"], dataset_weights=[1.0, float("nan")]), "must be 2 numbers above 0"),
        (dict(dataset_name=["a", "a"]), "names a part twice; raise its weight instead"),
        (dict(dataset_name=["a"]), "a mixture has two parts or more"),
        (dict(dataset_name=[]), "a mixture has two parts or more"),
        (dict(dataset_name="a", dataset_weights=[1.0, 2.0]), "a is no mixture; leave it out"),
        (dict(dataset_name=["a", "b"], dataset_kind="memmap"), "it has one part; give one name"),
        (dict(dataset_name=[["a"], "b"]), "must be a text, or a list, each of its elements a text"),
        (dict(dataset_name=["a", "b"], dataset_config=["x"], dataset_kind="hub"), "as many in each list"),
    ],
)
def test_mixtures_that_are_none_are_refused(given: dict[str, Any], said: str) -> None:
    cfg = load_config("model_type=sae", "dataset=local_text", "dataset_name=x")
    for name, value in given.items():
        setattr(cfg, name, value)
    assert any(said in fault for fault in checks.faults(cfg)), checks.faults(cfg)


def test_runs_on_a_mixture_train_side_by_side() -> None:
    mixture = ["model_type=sae", "dataset=local_text", "dataset_name=[a.txt,b.txt]", "dataset_weights=[2,1]"]
    check_shared([load_config(*mixture, f"k={k}") for k in (8, 16)])
    with pytest.raises(ConfigError, match=r"dataset_weights=\[2.0, 1.0\], None: runs that train side by side must agree"):
        check_shared([load_config(*mixture), load_config(*mixture, "dataset_weights=null")])


def test_a_mixture_is_composed_on_the_command_line() -> None:
    cfg = load_config("model_type=sae", "dataset=local_text", "dataset_name=[a.txt,b.txt]", "dataset_weights=[2,1]")
    assert cfg.dataset_name == ["a.txt", "b.txt"]
    assert cfg.dataset_weights == [2.0, 1.0]
