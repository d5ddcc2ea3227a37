"""What sae-eval has measured of runs on other data stands beside the runs' own numbers, by data set."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.made_up_runs import config, write_run
from helpers.reporting import call, record_of
from sae_transcoder.reports.columns import columns
from sae_transcoder.reports.page import report_page
from sae_transcoder.reports.plot_data import plotted_coders
from sae_transcoder.run_store import eval_file, run_records, status
from sae_transcoder.run_store.other_evaluations import folder_of

DATA = {"dataset_kind": "local_text", "dataset_name": "texts/other.txt", "dataset_config": None, "text_column": "text"}


def measure(run: Path, folder: str, fvu: float, **settings: object) -> Path:
    """Writes an evaluation of a run's coders beside its own."""
    own = eval_file.read(run)
    assert own is not None
    coders = [replace(coder, metrics={**coder.metrics, "fvu": fvu, "ce_loss_score": 0.5}) for coder in own.coders]
    place = folder_of(run / "coders", run) / folder
    eval_file.write(place, replace(own, coders=coders, config=DATA | settings))
    return place


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three runs, of which two are measured on another text."""
    for k, fvu in ((8, 0.4), (16, 0.7), (32, None)):
        run = write_run(tmp_path / f"k{k}", config(k=k, layers=[1, 2]))
        if fvu is not None:
            measure(run, "other.txt-1", fvu)
    return tmp_path


def test_the_table_has_columns_for_each_data_set_and_runs_are_sorted_and_selected_by_them(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, errors = call(capsys, runs)
    header, *rows = out.splitlines()
    assert errors == ""
    assert header.rstrip().endswith("FVU on other.txt  CE score on other.txt")
    assert [row.split()[-2:] for row in rows[:3]] == [["0.4000", "0.5000"], ["0.7000", "0.5000"], ["-", "-"]]
    _, out, _ = call(capsys, runs, "--sort", "-fvu@other.txt", "--where", "fvu@other.txt>0.1")
    assert [row.split()[0] for row in out.splitlines()[1:3]] == ["k16", "k8"]
    assert "k32" not in out


def test_metrics_that_are_asked_for_are_columns_of_the_runs_own_data_and_of_the_others(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = call(capsys, runs, "--metrics", "mse,l0")
    assert re.split(r"\s{2,}", out.splitlines()[0].strip())[-3:] == ["mse", "mse on other.txt", "L0 on other.txt"]
    code, _, errors = call(capsys, runs, "--metrics", "fvuu")
    assert code == 1
    assert "there is no metric fvuu; did you mean fvu?" in errors
    code, _, errors = call(capsys, runs, "--sort", "fvu@else.txt")
    assert code == 1
    assert "none of these runs was measured on else.txt; sae-eval has measured other.txt" in errors


def test_files_and_the_page_have_them_for_each_coder(runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    call(capsys, runs, "--csv", tmp_path / "all.csv")
    rows = list(csv.DictReader((tmp_path / "all.csv").open()))
    assert [row["fvu@other.txt"] for row in rows] == ["0.4", "0.4", "0.7", "0.7", "", ""]
    records = run_records.read_all([runs], pytest.fail)
    coders = plotted_coders(records, pytest.fail)
    assert ("FVU on other.txt", "0.4000") in coders[0].facts
    page = report_page(records, coders)
    assert ">FVU on other.txt</th>" in page
    assert "<td>0.7000</td><td>0.5000</td>" in page


def test_data_sets_of_the_same_last_name_are_told_apart_by_all_of_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", config(dataset_kind="demo", eval_samples=256))
    measure(run, "a", 0.1)
    assert list(record_of(run).others) == ["other.txt"]
    measure(run, "b", 0.2, dataset_name="else/other.txt")
    measure(run, "c", 0.3, dataset_kind="demo", dataset_name="demo", eval_samples=8)
    others = {label: other.evaluation.mean()["fvu"] for label, other in record_of(run).others.items()}
    assert others == pytest.approx(
        {"local_text texts/other.txt": 0.1, "local_text else/other.txt": 0.2, "demo eval_samples=8": 0.3}
    )
    assert [column.header for column in columns([record_of(run)])][-2:] == [
        "FVU on demo eval_samples=8",
        "CE score on demo eval_samples=8",
    ]


def test_what_was_measured_before_the_run_was_done_and_what_is_damaged_is_left_out_and_named(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = status.read(runs / "k8")
    assert run is not None
    status.write(runs / "k8", replace(run, step=run.step + 1))
    (folder_of(runs / "k16" / "coders", runs / "k16") / "other.txt-1" / "eval.json").write_text("{")
    _, out, errors = call(capsys, runs)
    assert "other.txt" not in out
    assert "k8/evals/coders/other.txt-1: measured before the run was done; left out" in errors
    assert "k16/evals/coders/other.txt-1/eval.json: cannot be read" in errors
    assert "sae-eval with the same settings measures again" in errors
