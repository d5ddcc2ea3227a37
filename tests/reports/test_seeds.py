"""Metrics over seeds: which coders differ in their seed alone, their means and deviations in the table, in files, in plots."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from helpers.made_up_runs import config, grid, write_run
from helpers.reporting import call
from sae_transcoder.reports import interactive_plots, page, pareto, plot_data, seed_means, static_plots
from sae_transcoder.reports.matching import NOT_MATCHED
from sae_transcoder.reports.seed_groups import seed_groups
from sae_transcoder.reports.table import seeds_table
from sae_transcoder.run_store import run_records
from sae_transcoder.run_store.run_records import Record

SEEDS = [0, 1, 2]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two k, three seeds each; of k = 8 in one run, of k = 16 in three."""
    write_run(tmp_path / "sweep" / "together", config(k=8, init_seeds=SEEDS), lines=4)
    grid(tmp_path / "sweep", lines=4, k=[16], init_seeds=[[seed] for seed in SEEDS])
    return tmp_path / "sweep"


def records_of(folder: Path) -> list[Record]:
    return run_records.read_all([folder], print)


def values_of(records: list[Record], k: int, metric: str) -> list[float]:
    """A metric of the coders of one k."""
    return [coder.metrics[metric] for record in records if record.evaluation for coder in record.evaluation.coders if coder.k == k]


def shown(records: list[Record]) -> list[plot_data.PlottedCoder]:
    """What the plots show."""
    coders = plot_data.plotted_coders(records, print)
    return [*coders, *seed_means.means_over_seeds(coders, seed_groups(records), NOT_MATCHED)]


def test_coders_are_grouped_that_differ_in_their_seed_alone(tmp_path: Path) -> None:
    write_run(tmp_path / "a", config(layers=[2, 6], init_seeds=[3, 1]), lines=4)
    write_run(tmp_path / "b", config(layers=[2, 6], init_seeds=[2], save_dir="elsewhere", threads=4), lines=4)
    write_run(tmp_path / "same seed", config(layers=[2, 6], init_seeds=[1], run_name="again"), lines=4)
    write_run(tmp_path / "other rate", config(layers=[2, 6], init_seeds=[4], lr=2e-3), lines=4)
    write_run(tmp_path / "other length", config(layers=[2, 6], init_seeds=[5]), lines=8)
    write_run(tmp_path / "not evaluated", config(layers=[2, 6], init_seeds=[6]), lines=4, evaluated=False)
    groups = seed_groups(records_of(tmp_path))
    assert [(group.hookpoint, group.seeds, group.runs) for group in groups] == [
        ("layers.2", [1, 2, 3], ["a", "b"]),
        ("layers.6", [1, 2, 3], ["a", "b"]),
    ]


def test_the_table_has_means_and_sample_deviations(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, sweep)
    assert (code, err) == (0, "")
    title, head, *lines = out.partition("\n\n")[2].splitlines()
    assert title == "Over seeds: mean ± standard deviation"
    assert head.split() == ["hookpoint", "k", "seeds", "L0", "held-out", "FVU", "CE", "score", "never", "fired", "dead"]
    records = records_of(sweep)
    by_k = {int(line.split()[1]): line for line in lines}
    assert sorted(by_k) == [8, 16]
    for k, line in by_k.items():
        assert line.split()[:3] == ["layers.6", str(k), "3"]
        for metric, digits in (("l0", 2), ("fvu", 4), ("ce_loss_score", 4)):
            values = values_of(records, k, metric)
            assert f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}" in line


def test_a_narrow_terminal_keeps_what_tells_the_groups_apart(tmp_path: Path) -> None:
    grid(tmp_path, lines=4, activation=["topk", "batchtopk"], lr=[1e-3, 2e-3], expansion_factor=[4, 8], init_seeds=[[0, 1]])
    narrow = Console(force_terminal=True, width=80, record=True, file=io.StringIO())
    records = records_of(tmp_path)
    narrow.print(*seeds_table(seed_groups(records), NOT_MATCHED, narrow))
    title, head, _, *lines = (line.split() for line in narrow.export_text().strip().splitlines())
    assert title[:2] == ["Over", "seeds:"]
    assert head == ["hookpoint", "expansion_factor", "kind", "lr", "k", "seeds", "held-out", "FVU"]
    assert len({tuple(line[1:4]) for line in lines[:8]}) == 8
    assert " ".join(lines[8]) == "This terminal has no room for dead, never fired, L0, CE score"


def test_runs_of_one_seed_have_no_such_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid(tmp_path, lines=4, k=[8, 16], lr=[1e-3, 2e-3])
    out = call(capsys, tmp_path)[1]
    assert out.splitlines()[-1] == "4 done"
    assert seed_groups(records_of(tmp_path)) == []


def test_files_over_seeds_have_a_row_for_each_group(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = {kind: tmp_path / f"seeds.{kind}" for kind in ("csv", "json", "parquet")}
    assert call(capsys, sweep, "--over-seeds", *(f"--{kind}={path}" for kind, path in paths.items()))[0] == 0
    records, rows = records_of(sweep), json.loads(paths["json"].read_text())
    assert sorted(row["k"] for row in rows) == [8, 16]
    for row in rows:
        for metric in ("fvu", "l0", "kl_div_score", "frac_alive"):
            values = values_of(records, row["k"], metric)
            assert (row[f"{metric}_mean"], row[f"{metric}_std"]) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
        assert (row["seeds"], row["hookpoint"], row["latents"]) == (SEEDS, "layers.6", 512)
        assert len(row["runs"]) == (1 if row["k"] == 8 else 3)
        assert (row["together_ce_loss_score_mean"], row["shared_latents_mean"]) == (None, None)
        last = [record.last[f"fvu/{name}"] for record in records for name in names_of(record) if record.config["k"] == row["k"]]
        assert row["train_fvu_mean"] == pytest.approx(np.mean(last))
    with paths["csv"].open() as file:
        assert [float(row["fvu_std"]) for row in csv.DictReader(file)] == [row["fvu_std"] for row in rows]
    table = pyarrow.parquet.read_table(paths["parquet"])
    assert table["fvu_mean"].to_pylist() == [row["fvu_mean"] for row in rows]
    assert table["seeds"].to_pylist() == ["[0, 1, 2]"] * 2


def names_of(record: Record) -> list[str]:
    return [coder.coder for coder in record.evaluation.coders] if record.evaluation else []


def test_a_metric_that_is_undefined_for_one_seed_has_no_mean(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", config(init_seeds=SEEDS), lines=4)
    kept = json.loads((directory / "eval.json").read_text())
    category = kept["eval_result_unstructured"]["coders"][1]["metrics"]["model_performance_preservation"]
    category["ce_loss_score"] = None
    (directory / "eval.json").write_text(json.dumps(kept))
    coders = shown(records_of(tmp_path))
    fvu, score = pareto.TRADEOFFS
    assert [len(each) for each in pareto.points_and_seeds(fvu.plottable(coders))] == [1, 3]
    assert [len(each) for each in pareto.points_and_seeds(score.plottable(coders))] == [2, 0]


def drawn(records: list[Record]) -> Figure:
    figure = static_plots.draw_pareto(shown(records))
    assert figure is not None
    return figure


def test_pictures_show_means_with_whiskers_and_the_line_joins_them(sweep: Path, tmp_path: Path) -> None:
    records = records_of(sweep)
    figure = drawn(records)
    axis = figure.axes[0]
    (bars,) = axis.containers
    means = [np.mean(values_of(records, k, "fvu")) for k in (8, 16)]
    line, points, pale = (line for line in axis.lines[:3])
    assert list(line.get_ydata()) == pytest.approx(means)
    assert sorted(points.get_ydata(), reverse=True) == pytest.approx(means)
    assert sorted(pale.get_ydata()) == pytest.approx(sorted(values_of(records, 8, "fvu") + values_of(records, 16, "fvu")))
    ends = {k: np.std(values_of(records, k, "fvu"), ddof=1) for k in (8, 16)}
    vertical = sorted(end for segment in bars[2][1].get_segments() for end in segment[:, 1])
    assert vertical == pytest.approx(sorted(means[k // 16] + sign * ends[k] for k in (8, 16) for sign in (-1, 1)))
    assert any("mean of several seeds" in text.get_text() for text in figure.legends[0].get_texts())
    grid(tmp_path / "single", lines=4, k=[8, 16])
    alone = drawn(records_of(tmp_path / "single"))
    assert alone.axes[0].containers == []
    assert not any("seeds" in text.get_text() for text in alone.legends[0].get_texts())


def test_the_page_has_the_table_and_means_with_whiskers_that_tell_their_seeds(sweep: Path) -> None:
    records = records_of(sweep)
    coders = shown(records)
    made = interactive_plots.draw_pareto(list(enumerate(coders)))
    assert made is not None
    figure, note = made
    assert "whiskers" in note
    (points, _) = (trace for trace in figure.data if trace.error_y.array is not None)
    for i, y, deviation in zip(points.customdata, points.y, points.error_y.array, strict=True):
        values = values_of(records, coders[i].k, "fvu")
        assert (y, deviation) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
        told = dict(coders[i].facts)
        assert told["mean of seeds"] == "0, 1, 2"
        assert len(told["runs"].split(", ")) == (1 if coders[i].k == 8 else 3)
        assert told["held-out FVU"] == f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"
    singles = [trace for trace in figure.data if trace.customdata is not None and trace.error_y.array is None]
    assert [len(trace.x) for trace in singles] == [6, 6]
    text = page.report_page(records, coders)
    assert "<h1>4 runs, 6 coders</h1>" in text
    assert "<h2>Over seeds: mean ± standard deviation</h2>" in text
    assert "± " in text.partition("<h2>Over seeds")[2].partition("</table>")[0]
