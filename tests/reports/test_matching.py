"""sae-report --matching: which coders are matched, where the result is shown and kept, what it refuses."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from helpers.made_up_coders import write_coders
from helpers.made_up_runs import config, write_run
from helpers.reporting import call
from helpers.run_directory_page import undocumented
from helpers.short_runs import short
from sae_transcoder.api import train
from sae_transcoder.config import run_dir
from sae_transcoder.reports import matched_latents, matching

THREE = {"layers.6/seed0": 1.0, "layers.6/seed1": 0.75, "layers.6/seed2": 0.5}
PAIRS = [0.75, 0.5, 0.5]  # of seeds 0 and 1, 0 and 2, 1 and 2


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three seeds."""
    directory = write_run(tmp_path / "runs" / "a", config(init_seeds=[0, 1, 2]), lines=4)
    write_coders(directory, THREE)
    return directory


def test_the_share_is_in_the_table_and_in_files(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "in common" not in call(capsys, run)[1]
    files = ["--csv", tmp_path / "all.csv", "--json", tmp_path / "all.json"]
    code, out, err = call(capsys, "--matching", run, *files)
    assert (code, err) == (0, "")
    assert out.splitlines()[5].endswith("latents in common")
    assert out.splitlines()[6].endswith(f"{100 * np.mean(PAIRS):.1f} % ± {100 * np.std(PAIRS, ddof=1):.1f} %")
    shared = [row["shared_latents"] for row in json.loads((tmp_path / "all.json").read_text())]
    assert shared == [0.625, 0.625, 0.5]
    assert call(capsys, run, "--matching", "--over-seeds", "--json", tmp_path / "all.json")[0] == 0
    (row,) = json.loads((tmp_path / "all.json").read_text())
    assert (row["shared_latents_mean"], row["shared_latents_std"]) == pytest.approx((np.mean(PAIRS), np.std(PAIRS, ddof=1)))


def test_what_is_matched_is_kept_until_the_weights_change(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = call(capsys, run, "--matching")
    computed = []
    match = matched_latents.match
    monkeypatch.setattr(matched_latents, "match", lambda *rows: computed.append(1) or match(*rows))
    assert call(capsys, run, "--matching") == first
    assert computed == []
    moved = run.rename(run.with_name("moved"))
    assert call(capsys, moved, "--matching")[0] == 0
    assert computed == []
    os.utime(moved / "coders/seed2/layers.6/sae.safetensors", ns=(1, 1))
    assert call(capsys, moved, "--matching")[1] == call(capsys, moved, "--matching")[1]
    assert len(computed) == 2
    (moved / "matching.json").write_text("{")
    code, out, err = call(capsys, moved, "--matching")
    assert (code, len(computed)) == (0, 5)
    assert "matching.json: cannot be read" in err
    assert "58.3 %" in out
    assert call(capsys, moved, "--matching")[2] == ""


def test_coders_of_equal_shape_are_matched_pair_by_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, settings in {
        "a": {"k": 8},
        "b": {"k": 16},
        "wide": {"expansion_factor": 16},
        "other": {"model_type": "transcoder"},
    }.items():
        write_run(tmp_path / "runs" / name, config(**settings), lines=4)
    for name, share in {"a": 1.0, "b": 0.25}.items():
        write_coders(tmp_path / "runs" / name, {"layers.6": share})
    code, out, err = call(capsys, tmp_path / "runs", "--matching=all")
    assert (code, err) == (0, "")
    head, *pairs = out.partition("Latents in common\n")[2].splitlines()
    assert head.split()[:2] == ["coder", "and"]
    assert [line.split()[:5] for line in pairs] == [["a/layers.6", "b/layers.6", "512", "25.0", "%"]]
    assert call(capsys, tmp_path / "runs", "--sort=-k", "--matching=all")[0] == 0
    assert len(json.loads((tmp_path / "runs" / "a" / "matching.json").read_text())["pairs"]) == 1
    assert not (tmp_path / "runs" / "b" / "matching.json").exists()


def test_a_coder_that_cannot_be_read_is_left_out(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = run / "coders/seed1/layers.6/sae.safetensors"
    weights.write_bytes(b"cut off")
    code, out, err = call(capsys, run, "--matching")
    assert code == 0
    assert err.splitlines() == [line for line in err.splitlines() if line.startswith(f"warning: {weights}: cannot be read")]
    assert len(err.splitlines()) == 1
    assert out.rstrip().endswith(" 50.0 %")
    weights.unlink()
    code, out, err = call(capsys, run, "--matching")
    assert (code, len(err.splitlines())) == (0, 1)
    assert "No such file" in err
    assert out.rstrip().endswith(" 50.0 %")


def test_what_cannot_be_matched_is_an_error(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "one" / "a", config(), lines=4)
    write_run(tmp_path / "one" / "b", config(expansion_factor=16), lines=4)
    for option, message in {
        "--matching": "error: --matching: no two evaluated coders differ in their seed alone",
        "--matching=all": "error: --matching=all: no two evaluated coders are of the same model",
        "--over-seeds": "error: --over-seeds: is about files",
    }.items():
        code, out, err = call(capsys, tmp_path / "one", option)
        assert (code, out, err[: len(message)]) == (1, "", message)
    code, _, err = call(capsys, tmp_path / "one", "--over-seeds", "--csv", tmp_path / "a.csv")
    assert (code, err[:20]) == (1, "error: --over-seeds:")
    assert not (tmp_path / "a.csv").exists()
    assert "--watch with --matching" in call(capsys, run, "--watch", "--matching")[2]
    monkeypatch.setattr(matching, "available_bytes", lambda: 1_000_000)
    code, out, err = call(capsys, run, "--matching")
    assert (code, out) == (1, "")
    assert err.startswith("error: --matching: coders of 512 latents need 0.0 GB")


def test_what_takes_long_is_announced(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "LONG", 0.0)
    lines = call(capsys, run, "--matching")[2].splitlines()
    assert lines[0].startswith("matching the latents of 3 pairs of coders: about ")
    assert lines[1:] == ["1 of 3 pairs", "2 of 3 pairs", "3 of 3 pairs"]


def test_where_nothing_can_be_written_the_share_is_shown_all_the_same(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(directory: Path, pairs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("sae_transcoder.run_store.matching_file.write", refuse)
    code, out, err = call(capsys, run, "--matching")
    assert code == 0
    assert "58.3 %" in out
    assert f"{run / 'matching.json'}: cannot be written (Permission denied)" in err


def test_seeds_of_a_run_that_was_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = short(tmp_path / "cache", tmp_path / "runs", "init_seeds=[0,1]", "eval_end_to_end=false", "max_steps=4")
    train(cfg)
    capsys.readouterr()
    code, out, err = call(capsys, run_dir(cfg), "--matching")
    assert (code, err) == (0, "")
    assert "layers.2   8      2" in out
    (pair,) = json.loads((run_dir(cfg) / "matching.json").read_text())["pairs"]
    assert pair["latents"] == 512
    assert undocumented(run_dir(cfg)) == []
    assert pair["shared"] < 0.1  # four steps do not bring two initialisations together
    assert out.rstrip().endswith(f" {100 * pair['shared']:.1f} %")
