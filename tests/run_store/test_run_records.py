"""Runs below folders are found, named and read as they are now."""

import itertools
import json
import time
from pathlib import Path

import numpy as np
import pytest

from helpers.made_up_runs import config, write_run
from helpers.reporting import record_of
from sae_transcoder.config import FIELDS
from sae_transcoder.run_store import observed_status, run_files, run_records, status
from sae_transcoder.run_store.status import State, Status


def test_runs_are_found_at_any_depth_but_not_in_runs_nor_hidden_folders(tmp_path: Path) -> None:
    for place in ("a", "b/c/d", "a/coders/inside", ".hidden/e"):
        write_run(tmp_path / place, config())
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    faults: list[str] = []
    found = run_records.find_all([tmp_path, tmp_path / "b"], faults.append)
    assert [name for _, name in found] == ["a", "b/c/d"]
    assert faults == []
    assert [name for _, name in run_records.find_all([tmp_path / "a"], faults.append)] == ["a"]
    assert [name for _, name in run_records.find_all([tmp_path / "a", tmp_path / "b"], faults.append)] == ["a", "b/c/d"]


def test_names_are_in_natural_order(tmp_path: Path) -> None:
    for name in ("k8", "k16", "k128"):
        write_run(tmp_path / name, config())
    assert [name for _, name in run_records.find_all([tmp_path], print)] == ["k8", "k16", "k128"]


def test_a_run_says_running_only_while_it_lives(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", config(), State.running)
    dead = record_of(directory)
    assert dead.status.state == State.interrupted
    assert "is gone" in dead.status.why
    assert run_records.values(dead)["eta"] is None
    with status.lock(directory):
        living = record_of(directory)
    assert living.status.state == State.running
    # 100 of 200 steps of 2,048 tokens are left, at 24,000 tokens/s.
    assert run_records.values(living)["eta"] == pytest.approx(living.status.step * 2048 / 24000)
    elsewhere = Status(State.running, "1a2b3c4d", 10, 20, 2048, 100.0, host="elsewhere")
    status.write(directory, elsewhere)
    assert record_of(directory).status.state == State.running
    status.write(
        directory, Status(State.running, "1a2b3c4d", heartbeat=time.time() - 10 * observed_status.STALE_AFTER, host="elsewhere")
    )
    assert record_of(directory).status.state == State.interrupted


def test_a_config_has_the_fields_of_the_config_and_their_types(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", config(lr=1))
    path = directory / ".hydra" / "config.yaml"
    path.write_text(path.read_text() + "hydra: 3\nauxk_alpha: 1e-2\n")
    kept = run_files.read_config(directory)
    assert "hydra" not in kept
    assert kept["lr"] == 1.0
    assert isinstance(kept["lr"], float)
    assert kept["auxk_alpha"] == 0.01
    assert set(run_files.TYPES) == set(FIELDS)
    path.unlink()
    assert run_files.read_config(directory) == {}
    assert run_records.values(record_of(directory))["k"] is None


def test_the_last_line_of_losses_is_found_whatever_comes_after_it(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", config(), State.queued)
    assert run_files.read_last(directory) == {}
    path = directory / "metrics.jsonl"
    losses = {"step": 10, "tokens": 99, "fvu/layers.6": 0.5, "dead_fraction/layers.6": None}
    wide = {f"heldout/fvu/layers.{i}": 0.123456789 for i in range(2 * run_files.BLOCK // 20)}
    for before, after in itertools.product(
        ["", json.dumps({"step": 1, "fvu/a": 9.0}) + "\n"], ["", '{"step": 20, "fv', json.dumps(wide) + "\n"]
    ):
        path.write_text(before + json.dumps(losses) + "\n" + after)
        found = run_files.read_last(directory)
        assert found["fvu/layers.6"] == 0.5
        assert np.isnan(found["dead_fraction/layers.6"])


def test_differing_fields_are_in_the_order_of_the_config_and_without_names(tmp_path: Path) -> None:
    write_run(tmp_path / "a", config(k=8, run_name="x", layers=[1]))
    write_run(tmp_path / "b", config(k=16, run_name="y", layers=[1, 2]))
    (write_run(tmp_path / "c", config()) / ".hydra" / "config.yaml").unlink()
    assert run_records.differing(run_records.read_all([tmp_path], print)) == [f for f in FIELDS if f in ("k", "layers")]


def test_durations() -> None:
    assert [observed_status.duration(s) for s in (3, 65, 3 * 3600 + 720, 90_000)] == ["3 s", "1 min 05 s", "3 h 12 min", "1 d 01 h"]
