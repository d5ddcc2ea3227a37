"""sae-report: runs are found and read, faults are said and passed over, the table, the files and the pictures hold what they should."""

import csv
import io
import itertools
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from helpers.made_up_runs import config, evaluation, grid, metrics, write_run
from sae_transcoder import report
from sae_transcoder.config import FIELDS
from sae_transcoder.reports import pareto, plot_data, plot_style, query, watch
from sae_transcoder.reports.data_files import COLUMN_TYPES
from sae_transcoder.reports.table import runs_table
from sae_transcoder.run_store import eval_file, observed_status, run_files, run_records, status
from sae_transcoder.run_store.status import State, Status


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command."""
    code = 0
    try:
        report.main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two types, three k."""
    grid(tmp_path / "sweep", lines=20, model_type=["sae", "transcoder"], k=[8, 16, 32])
    return tmp_path / "sweep"


def record_of(directory: Path) -> run_records.Record:
    faults: list[str] = []
    found = next(iter(run_records.read_all([directory], faults.append)), None)
    assert found is not None
    assert faults == []
    return found


# Records


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


# Faults


def test_a_folder_that_is_missing_or_holds_no_runs_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, tmp_path / "absent")
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {tmp_path}/absent: does not exist; name ")
    code, _, err = call(capsys, tmp_path)
    assert code == 1
    assert "holds no runs" in err
    (tmp_path / "file").write_text("")
    assert "is not a folder" in call(capsys, tmp_path / "file")[2]


def test_other_folders_are_shown_when_one_has_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a" / "run1", config())
    (tmp_path / "empty").mkdir()
    code, out, err = call(capsys, tmp_path / "a", tmp_path / "empty", tmp_path / "absent")
    assert code == 0
    assert "run1" in out
    assert "empty: holds no runs" in err
    assert "absent: does not exist" in err


DAMAGE = {
    "status.json": ["", "{", "[]", "3", "{}", '{"state": "odd"}', '{"state": "done", "signature": "x", "new": 1}',
                    '{"state": "done", "signature": "x", "step": "many"}', '{"state": "done", "signature": "x", "step": 1e400}',
                    '{"state": "running", "signature": "x", "heartbeat": NaN}', b"\xff\xfe"],
    "eval.json": ["", "{", "[]", "{}", '{"eval_format": 99}', b"\xff\xfe"],
    "metrics.jsonl": ["{\n", "[]\n", '{"fvu/a": 1' + 400 * "0" + "}\n", '{"fvu/a": "x"}\n', b"\xff\xfe\n"],
    ".hydra/config.yaml": ["a: [", "- a", "k: many", "k: 1.5", "k: 1" + 400 * "0", "lr: .nan", "layers: 6", "layers: [.nan]", b"\xff\xfe"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "content"), [(name, content) for name, contents in DAMAGE.items() for content in contents])
def test_a_damaged_file_is_named_and_the_rest_is_shown(
    name: str, content: str | bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = write_run(tmp_path / "good", config(), lines=4), write_run(tmp_path / "bad", config(k=4), lines=4)
    (bad / name).write_bytes(content.encode() if isinstance(content, str) else content)
    code, out, err = call(capsys, tmp_path, "--csv", tmp_path / "all.csv", "--failed")
    assert code == 0
    assert "Traceback" not in err
    assert str(bad / name) in err
    assert len(err.splitlines()) == 1
    assert re.search(r"^good ", out, re.MULTILINE)
    assert bool(re.search(r"^bad ", out, re.MULTILINE)) is (name != "status.json")
    assert good.exists()


def test_damage_that_only_pictures_meet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = write_run(tmp_path / "bad", config(), lines=4)
    (bad / eval_file.DENSITIES).write_bytes(b"PK")
    path = bad / "metrics.jsonl"
    path.write_text("odd\n" + 3000 * (path.read_text().splitlines()[0] + "\n"))  # not at the end, where the table looks
    code, out, err = call(capsys, tmp_path, "--out", tmp_path / "out")
    assert code == 0
    assert str(path) in err
    assert eval_file.DENSITIES in err
    assert "pareto.png" in out
    assert not (tmp_path / "out" / "curves.png").exists()
    assert not (tmp_path / "out" / "densities.png").exists()


def test_only_damaged_runs_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (write_run(tmp_path / "bad", config()) / "status.json").write_text("{")
    code, out, err = call(capsys, tmp_path)
    assert (code, out) == (1, "")
    assert "error: " in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "good", config())
    (tmp_path / "closed").mkdir(mode=0)
    code, _, err = call(capsys, tmp_path)
    assert code == 0
    assert "closed: Permission denied" in err


# Table


def test_the_table_has_progress_settings_and_metrics(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, sweep)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    heads = "run state step tokens/s ETA model_type k train FVU held-out FVU CE score L0 dead"
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


# Files


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


# Pictures


def test_pareto_optimal_points_by_trying_all_pairs() -> None:
    source = random.Random(0)
    for size in (0, 1, 2, 5, 40):
        for _ in range(60):
            points = [(source.choice([1.0, 2.0, 4.0]), source.randrange(6) / 2) for _ in range(size)]
            dominated = [
                any(x <= a and y <= b and (x < a or y < b) for x, y in points) for a, b in points
            ]  # fmt: skip
            assert pareto.pareto_mask(points) == [not each for each in dominated]


def test_bins_hold_every_latent_that_fires() -> None:
    density = np.array([0.0, 0.0, 1.0, 0.9, 0.1, 0.01, 0.0105, 1e-6])
    histogram = plot_data.density_histogram(density)
    assert (histogram.never, histogram.total, histogram.counts.sum()) == (2, 8, 6)
    edges = histogram.first + plot_data.BIN * np.arange(len(histogram.counts) + 1)
    assert edges[0] == pytest.approx(-6.0)
    assert edges[-1] == pytest.approx(0.0)
    assert histogram.counts.tolist() == np.histogram(np.log10(density[2:]) + 1e-9, [*edges[:-1], 1])[0].tolist()
    x, y = plot_data.outline(histogram)
    assert np.trapezoid(y, x) == pytest.approx(100 * 6 / 8 * plot_data.BIN)
    assert plot_data.density_histogram(np.zeros(3)).never == 3


def test_curves_are_thinned_with_their_ends() -> None:
    curve = np.stack([np.arange(1000.0), np.arange(1000.0)])
    thin = plot_data.thin_out(curve, 300)
    assert thin.shape == (2, 300)
    assert (thin[0, 0], thin[0, -1]) == (0, 999)
    assert plot_data.thin_out(curve[:, :5], 300).shape == (2, 5)
    assert plot_data.thin_out(curve[:, :0], 300).shape == (2, 0)


def test_the_line_joins_the_best_of_each_k(tmp_path: Path) -> None:
    grid(tmp_path, lines=4, k=[8, 16, 32], lr=[1e-3, 3e-3], init_seeds=[[0, 1]])
    coders = plot_data.plotted_coders(run_records.read_all([tmp_path], print), print)
    assert len(coders) == 12
    tradeoff = pareto.TRADEOFFS[0]
    line = pareto.best_of_each_k(coders, tradeoff.cost)
    assert [coder.k for coder in line] == [8, 16, 32]
    assert [coder.fvu for coder in line] == [min(c.fvu for c in coders if c.k == k) for k in (8, 16, 32)]


def test_ticks_keep_apart() -> None:
    def ticks(*ks: int) -> list[int]:
        coder = plot_data.PlottedCoder("p", "sae", plot_data.CoderSize(8), 0, 1.0, 1.0, 1.0, [], np.zeros((2, 0)), None)
        return plot_style.k_ticks([type(coder)(**(vars(coder) | {"k": k})) for k in ks])

    assert ticks(64, 8, 16, 32) == [8, 16, 32, 64]
    assert len(ticks(*range(1, 200))) <= 10
    assert ticks(30, 31, 64) == [30, 64]
    assert ticks() == []


def text_of(path: Path) -> list[str]:
    """The words of an svg."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())


def test_pictures_hold_panels_labels_ticks_and_legend(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "out"
    code, printed, err = call(capsys, sweep, "--out", out)
    assert (code, err) == (0, "")
    written = ["pareto.png", "pareto.svg", "curves.png", "curves.svg", "densities.png", "densities.svg", "report.html"]
    assert printed.splitlines()[-7:] == [str(out / name) for name in written]
    assert sorted(os.listdir(out)) == sorted(written)
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in written if name.endswith("png"))
    words = text_of(out / "pareto.svg")
    for word in ("layers.6", "layers.6.mlp", "FVU, held out", "CE loss score", "L0 (latents per token)", "8", "16", "32"):
        assert word in words
    assert "sae, 512 latents" in words
    assert "transcoder, 512 latents" in words
    assert any("Pareto-optimal" in word for word in words)
    assert {"layers.6", "FVU, training", "training tokens (millions)", "k = 8", "k = 32"} <= set(text_of(out / "curves.svg"))
    densities = text_of(out / "densities.svg")
    never = sum(
        plot_data.density_histogram(d).never for path in sweep.glob("sae*") for d in eval_file.read_densities(path).values()
    )
    assert f"sae, 512 latents (never fired: {never:,} of 1,536)" in densities


def test_the_same_runs_give_the_same_bytes(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("a", "b"):
        assert call(capsys, sweep, "--out", tmp_path / place)[0] == 0
    for name in os.listdir(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_runs_not_evaluated_are_counted_and_in_the_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "runs" / "a", config(k=8), lines=4)
    write_run(tmp_path / "runs" / "b", config(k=16), lines=4, evaluated=False)
    write_run(tmp_path / "runs" / "c", config(k=32), State.queued)
    code, out, _ = call(capsys, tmp_path / "runs", "--out", tmp_path / "out")
    assert code == 0
    assert "2 of 3 runs are not evaluated yet" in out
    assert {"k = 8", "k = 16"} <= set(text_of(tmp_path / "out" / "curves.svg"))
    # The width of what is not evaluated is that of its hookpoint.
    assert [word for word in text_of(tmp_path / "out" / "curves.svg") if "sae" in word] == ["sae, 512 latents"]
    assert "16" not in text_of(tmp_path / "out" / "pareto.svg")


def test_curves_alone_and_nothing_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "curves" / "a", config(), lines=4, evaluated=False)
    code, _, _ = call(capsys, tmp_path / "curves", "--out", tmp_path / "out")
    assert code == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["curves.png", "curves.svg", "report.html"]
    assert "sae, x8" in text_of(tmp_path / "out" / "curves.svg")
    write_run(tmp_path / "nothing" / "a", config(), State.queued)
    code, _, err = call(capsys, tmp_path / "nothing", "--out", tmp_path / "out2")
    assert code == 1
    assert "error: " in err
    assert not (tmp_path / "out2").exists()


def test_metrics_that_cannot_be_drawn_leave_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A coder of L0 zero has no place on a logarithmic axis; without CE scores that row is left out; a diverged run has its place."""
    drawn = [
        {"l0": 0.0, "ce_loss_score": float("nan")},
        {"ce_loss_score": float("nan")},
        {"fvu": 4e5, "ce_loss_score": float("nan")},
    ]
    for i, odd in enumerate(drawn):
        settings = config(k=8 * (i + 1))
        directory = write_run(tmp_path / "runs" / f"{i}", settings, lines=4)
        found = metrics(settings, np.random.default_rng(0)) | odd
        eval_file.write(directory, evaluation(settings, {"layers.6": found}, 40, np.random.default_rng(0)))
    code, out, _ = call(capsys, tmp_path / "runs", "--out", tmp_path / "out")
    assert code == 0
    words = text_of(tmp_path / "out" / "pareto.svg")
    assert "CE loss score" not in words
    assert {"16", "24"} <= set(words)
    assert "1 of 3 evaluated coders have an L0 of zero or no FVU" in out
    assert "4e+05" in out


def test_many_hookpoints_are_drawn_in_part_and_that_is_said(tmp_path: Path) -> None:
    from sae_transcoder.reports import interactive_plots, static_plots

    write_run(tmp_path / "a", config(layers=list(range(20))), lines=2)
    coders = plot_data.plotted_coders(run_records.read_all([tmp_path], print), print)
    figure = static_plots.draw_curves(coders)
    assert figure is not None
    assert figure.get_suptitle().startswith("12 of 20 hookpoints")
    titles = [axis.get_title() for axis in figure.axes]
    assert (len(titles), titles[0], titles[-1]) == (12, "layers.0", "layers.19")
    page = interactive_plots.draw_curves(list(enumerate(coders)))
    assert page is not None
    assert [note.text for note in page[0].layout.annotations] == [f"layers.{i}" for i in range(20)]


def test_two_models_do_not_share_a_panel(tmp_path: Path) -> None:
    write_run(tmp_path / "a", config(), lines=2)
    write_run(tmp_path / "b", config(model_name="gpt2"), lines=2)
    coders = plot_data.plotted_coders(run_records.read_all([tmp_path], print), print)
    assert plot_style.panels(coders) == ["demo layers.6", "gpt2 layers.6"]


def test_nothing_heavy_is_imported_without_need(sweep: Path, tmp_path: Path) -> None:
    script = """
import sys
from sae_transcoder.report import main
main(sys.argv[1:])
print(*sorted({m.partition(".")[0] for m in sys.modules}))
"""

    def imported(*arguments: str) -> set[str]:
        out = subprocess.run(
            [sys.executable, "-c", script, str(sweep), *arguments], capture_output=True, text=True, check=True
        ).stdout
        return set(out.splitlines()[-1].split())

    always = {"torch", "transformers", "sparsify", "datasets", "wandb", "pandas"}
    assert not imported() & (always | {"matplotlib", "plotly", "pyarrow"})
    assert not imported("--out", str(tmp_path / "out"), "--csv", str(tmp_path / "a.csv")) & (always | {"pyarrow"})


@pytest.mark.parametrize("odd", [{"d": "64"}, {"k": 1.5}, {"hookpoint": 6}, {"metrics": {"sparsity": {"l0": "16"}}}, {"seed": [1]}])
def test_an_evaluation_of_other_types_is_named(odd: dict[str, object], tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", config(), lines=4) / "eval.json"
    kept = json.loads(path.read_text())
    kept["eval_result_unstructured"]["coders"][0] |= odd
    path.write_text(json.dumps(kept))
    faults: list[str] = []
    (record,) = run_records.read_all([path.parent], faults.append)
    assert record.evaluation is None
    assert [fault.split(":")[0] for fault in faults] == [str(path)]
