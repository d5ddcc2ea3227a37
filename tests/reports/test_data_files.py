"""The files that sae-report writes have a row for each coder."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

from helpers.made_up_runs import config, evaluation, metrics, write_run
from helpers.reporting import call, record_of
from sae_transcoder.reports.data_files import COLUMN_TYPES
from sae_transcoder.run_store import eval_file
from sae_transcoder.run_store.status import State


def test_files_have_a_row_for_each_coder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow.parquet

    write_run(tmp_path / "runs" / "a", config(layers=[2, 6], init_seeds=[0, 1]), lines=4)
    write_run(tmp_path / "runs" / "b", config(), State.failed, lines=4)
    paths = {kind: tmp_path / "new" / "folder" / f"all.{kind}" for kind in ("csv", "json", "parquet")}
    code, out, _ = call(capsys, tmp_path / "runs", *(f"--{kind}={path}" for kind, path in paths.items()))
    assert code == 0
    assert out.splitlines()[-3:] == [str(path) for path in paths.values()]
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == ["all.csv", "all.json", "all.parquet"]
    with paths["csv"].open() as file:
        text = list(csv.DictReader(file))
    plain = json.loads(paths["json"].read_text())
    table = pyarrow.parquet.read_table(paths["parquet"])
    typed = table.to_pylist()
    assert len(text) == len(plain) == len(typed) == 5
    assert list(text[0]) == list(plain[0]) == table.column_names == list(COLUMN_TYPES)
    assert [(row["hookpoint"], row["seed"]) for row in plain] == [
        ("layers.2", 0), ("layers.2", 1), ("layers.6", 0), ("layers.6", 1), (None, None)
    ]  # fmt: skip
    record = record_of(tmp_path / "runs" / "a")
    assert record.evaluation is not None
    for row, coder in zip(plain, record.evaluation.coders, strict=False):
        assert {name: row[name] for name in eval_file.NAMES} == coder.metrics
        together = next(t for t in record.evaluation.together if coder.coder in t.coders)
        assert {name: row[f"together_{name}"] for name in together.metrics} == together.metrics
        assert row["train_fvu"] == record.last[f"fvu/{coder.coder}"]
        assert (row["latents"], row["num_latents"], row["d"], row["layers"]) == (512, 0, 64, [2, 6])
    assert typed[0]["layers"] == text[0]["layers"] == "[2, 6]"
    assert typed[0]["fvu"] == plain[0]["fvu"] == float(text[0]["fvu"])
    assert typed[0]["corrections"] is True
    assert plain[4]["fvu"] is None
    assert text[4]["fvu"] == ""
    assert plain[4]["why"].startswith("CUDA out of memory")
    assert plain[4]["train_fvu"] == record_of(tmp_path / "runs" / "b").last["fvu/layers.6"]


def test_a_metric_that_does_not_exist_is_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = config()
    directory = write_run(tmp_path / "run", settings, lines=4)
    found = metrics(settings, np.random.default_rng(0)) | {"ce_loss_score": float("nan")}
    eval_file.write(directory, evaluation(settings, {"layers.6": found}, 40, np.random.default_rng(0)))
    assert call(capsys, directory, "--json", tmp_path / "all.json", "--csv", tmp_path / "all.csv")[0] == 0
    assert json.loads((tmp_path / "all.json").read_text())[0]["ce_loss_score"] is None


def test_a_path_that_cannot_be_written_is_an_error(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for option in ("--csv", "--json", "--parquet"):
        for path in (tmp_path / "file" / "all", sweep):
            code, _, err = call(capsys, sweep, option, path)
            assert code == 1
            assert err.startswith(f"error: {path}: cannot be written")
    assert call(capsys, sweep, "--out", tmp_path / "file")[0] == 1
