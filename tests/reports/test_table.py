"""The table of sae-report: what it shows, sorts, selects, and how it is watched."""

import io
import os
import re
import socket
from pathlib import Path

import pytest
from rich.console import Console

from helpers.made_up_runs import config, grid, write_run
from helpers.reporting import call, record_of
from sae_transcoder import report
from sae_transcoder.config import FIELDS
from sae_transcoder.config.fields import GROUPS
from sae_transcoder.metric_names import NAMES, RUN_COLUMNS
from sae_transcoder.reports import query, watch
from sae_transcoder.reports.config_groups import COLUMNS_OF
from sae_transcoder.reports.table import runs_table
from sae_transcoder.run_store import run_records, status
from sae_transcoder.run_store.status import State, Status


def test_the_table_has_progress_settings_and_metrics(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, sweep)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    heads = "run state step tokens/s model_type k L0 train FVU held-out FVU CE score never fired dead"
    assert lines[0].split() == heads.split()
    assert len(lines) == 8
    assert lines[-1] == "6 done"
    record = record_of(next(sweep.iterdir()))
    assert record.evaluation is not None
    assert f"{record.evaluation.mean()['fvu']:.4f}" in out
    assert max(map(len, lines)) > 80


def test_names_and_reasons_are_not_taken_for_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "[red]a[/red]", config(), State.failed)
    code, out, _ = call(capsys, tmp_path, "--failed")
    assert code == 0
    assert out.count("[red]a[/red]") == 3


def test_a_narrow_terminal_leaves_settings_out_and_says_so(tmp_path: Path) -> None:
    grid(tmp_path, lines=2, lr=[1e-3, 3e-3], expansion_factor=[8, 16], batch_size=[4, 8], max_samples=[100, 200])
    records = run_records.read_all([tmp_path], print)
    narrow = Console(force_terminal=True, width=100, record=True, file=io.StringIO())
    narrow.print(runs_table(records, narrow))
    text = narrow.export_text()
    assert max(map(len, text.splitlines()[:19])) <= 100
    assert re.search(r"no room for .*max_samples", text)
    assert "expansion_factor" not in text.splitlines()[0]
    wide = Console(force_terminal=True, width=250, record=True, file=io.StringIO())
    wide.print(runs_table(records, wide))
    assert "no room" not in wide.export_text()


def names(out: str) -> list[str]:
    """The k in the names of the runs that are shown."""
    return [re.search(r"-k(\d+)-", line)[1] for line in out.splitlines() if re.search(r"-k(\d+)-", line)]


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--sort", "k"], ["8", "8", "16", "16", "32", "32"]),
        (["--sort", "-k"], ["32", "32", "16", "16", "8", "8"]),
        (["--sort", "-fvu", "--where", "model_type=sae"], ["8", "16", "32"]),
        (["--sort", "fvu", "--where", "model_type=sae"], ["32", "16", "8"]),
        (["--where", "k=16"], ["16", "16"]),
        (["--where", "k<=16", "--where", "model_type!=sae"], ["8", "16"]),
        (["--where", "k>8", "--where", "k < 32"], ["16", "16"]),
        (["--where", "layers=[6]", "--where", "k==8"], ["8", "8"]),
        (["--where", "lr=1e-3", "--where", "k>=32"], ["32", "32"]),
        (["--where", "lr<1e-2", "--where", "state=done", "--where", "k=8"], ["8", "8"]),
        (["--where", "run_name=null", "--where", "k=8"], ["8", "8"]),
        (["--where", "corrections=true", "--where", "l0>20"], ["32", "32"]),
    ],
)
def test_sort_and_where(arguments: list[str], shown: list[str], sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, sweep, *arguments)
    assert (code, err) == (0, "")
    assert names(out) == shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sort", "expansion"], "did you mean .*expansion_factor"),
        (["--where", "FVU=3"], "did you mean .*fvu"),
        (["--where", "dead<3"], "dead_fraction"),
        (["--where", "architecture=topk"], "architecture=topk: .*; write kind=topk$"),
        (["--where", "architecture!=matryoshka"], "write kind!=matryoshka$"),
        (["--where", "architecture=skip"], "write kind=topk --where skip_connection=true$"),
        (["--where", "architecture!=skip"], "its columns are kind, skip_connection$"),
        (["--where", "model=gpt2"], "write model_name=openai-community/gpt2$"),
        (["--where", "model = my/own"], "write model_name=my/own$"),
        (["--where", "dataset=hub"], "write dataset_kind=hub$"),
        (["--where", "dataset=demo"], "write dataset_name=demo --where dataset_kind=demo$"),
        (["--sort", "-architecture"], "write kind$"),
        (["--where", "zzzz=3"], "no such field or metric"),
        (["--where", "k"], "write KEY=VALUE"),
        (["--where", "layers=[6"], "not a value of YAML"),
        (["--where", "k<[3]"], "needs a number"),
        (["--where", "k=17"], "no run meets --where k=17; in these runs k is 8, 16, 32"),
        (["--watch", "0"], "at least 0.1"),
        (["--watch", "1", "--csv", "x.csv"], "leave out --watch"),
    ],
)
def test_what_cannot_be_asked_for_is_an_error(
    arguments: list[str], said: str, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, sweep, *arguments)
    assert code == 1
    assert re.search(f"^error: .*{said}", err), err


def test_every_group_is_a_column_or_has_columns() -> None:
    assert {*GROUPS} - {*query.KEYS} - {"experiment"} == {*COLUMNS_OF}
    assert {column for columns in COLUMNS_OF.values() for column in columns} <= {*query.KEYS}


def test_runs_without_a_value_come_last_either_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k, evaluated in [(8, True), (16, False), (32, True)]:
        write_run(tmp_path / f"run-k{k}-", config(k=k), lines=4, evaluated=evaluated)
    assert names(call(capsys, tmp_path, "--sort", "fvu")[1]) == ["32", "8", "16"]
    assert names(call(capsys, tmp_path, "--sort=-fvu")[1]) == ["8", "32", "16"]


def test_failed_says_why_in_full_and_where_the_log_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = write_run(tmp_path / "a", config(), State.failed)
    (directory / "train.log").write_text("")
    write_run(tmp_path / "b", config(), State.running)
    found = Status(State.preempted, "x", slurm_job="1234_5")
    status.write(write_run(tmp_path / "c", config()), found)
    write_run(tmp_path / "d", config())
    code, out, _ = call(capsys, tmp_path, "--failed")
    assert code == 0
    assert "a: failed at step 300 of 600\n  CUDA out of memory: tried to allocate 2 GiB\n  set micro_acc_steps=4\n" in out
    assert f"log: {directory / 'train.log'}\n" in out
    assert re.search(rf"b: interrupted .*\n  process {os.getpid()} on {re.escape(socket.gethostname())} is gone", out)
    assert "c: preempted at step 0 of 0, SLURM job 1234_5\n  no reason was recorded" in out
    assert "d: " not in out
    assert "1 interrupted, 1 preempted, 1 failed, 1 done" in out


def test_watch_ends_when_no_run_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_run(tmp_path / "run", config(), State.queued)
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        write_run(directory, config(), State.done)

    monkeypatch.setattr(watch.time, "sleep", sleep)
    code, out, err = call(capsys, "--watch", tmp_path)
    assert (code, err, naps) == (0, "", [report.WATCH_EVERY])
    assert "1 queued" in out
    assert "1 done" in out


def test_ctrl_c_ends_watch_without_complaint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run", config(), State.queued)

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", interrupted)
    code, out, err = call(capsys, tmp_path, "--watch", "2")
    assert (code, err) == (0, "")
    assert "queued" in out


def test_every_key_has_a_value_and_the_other_way_round(sweep: Path) -> None:
    assert tuple(run_records.values(record_of(next(sweep.iterdir())))) == query.KEYS
    assert len(set(query.KEYS)) == len(query.KEYS)
    assert set(query.KEYS) == {*RUN_COLUMNS, *FIELDS, *NAMES}, "--explain knows them"
