"""Runs of several activations, and of Matryoshka coders, side by side: in the table, the files, the plots and the page."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.colors import to_hex

from helpers.made_up_runs import config, grid, write_run
from helpers.reporting import call, record_of
from sae_transcoder.metric_names import THRESHOLD_QUANTILES
from sae_transcoder.reports import columns, interactive_plots, page, pareto, plot_data, plot_style, static_plots
from sae_transcoder.run_store import run_records
from sae_transcoder.run_store.run_records import CODER_KINDS, Record

WIDTHS = [64, 256, 512]
KINDS: dict[str, dict[str, Any]] = {
    "topk": {},
    "groupmax": {"activation": "groupmax"},
    "batchtopk": {"activation": "batchtopk"},
    "jumprelu": {"activation": "jumprelu", "jumprelu_loss": "quadratic"},
    "matryoshka": {"activation": "batchtopk", "matryoshka_widths": WIDTHS},
    "matryoshka_topk": {"matryoshka_widths": WIDTHS},
}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind at two k."""
    folder = tmp_path_factory.mktemp("kinds")
    for name, settings in KINDS.items():
        for k in (8, 32):
            write_run(folder / f"{name}-k{k}-", config(k=k, **settings), lines=4)
    return folder


def records_of(folder: Path) -> list[Record]:
    return run_records.read_all([folder], print)


def test_the_table_names_the_kind_in_place_of_activation_and_widths(kinds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, kinds)
    assert (code, err) == (0, "")
    header, *rows = (line.split() for line in out.splitlines())
    assert [header[i] for i in range(4, 7)] == ["kind", "k", "L0"]
    assert "activation" not in header
    assert "matryoshka_widths" not in header
    shown = {row[0]: (row[4], row[5]) for row in rows[:-1]}
    assert shown == {f"{name}-k{k}-": (name, str(k)) for name in KINDS for k in (8, 32)}


def test_runs_are_selected_and_sorted_by_kind(kinds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in KINDS:
        code, out, _ = call(capsys, kinds, "--where", f"kind={name}")
        assert code == 0
        assert out.count(f"\n{name}-k") == 2
        assert out.endswith("2 done\n")
    assert call(capsys, kinds, "--where", "activation=batchtopk")[1].endswith("4 done\n")
    first = call(capsys, kinds, "--sort", "kind")[1].splitlines()[1]
    assert first.startswith("batchtopk-")


def test_widths_are_a_column_where_matryoshka_coders_differ_in_them(tmp_path: Path) -> None:
    write_run(tmp_path / "a", config(), lines=2)
    write_run(tmp_path / "b", config(matryoshka_widths=[64, 512]), lines=2)
    assert columns.differing_settings(records_of(tmp_path)) == ["kind"]
    write_run(tmp_path / "c", config(matryoshka_widths=[128, 512]), lines=2)
    assert columns.differing_settings(records_of(tmp_path)) == ["kind", "matryoshka_widths"]


def test_runs_of_the_version_before_stand_beside_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = write_run(tmp_path / "before", config(), lines=2) / ".hydra" / "config.yaml"
    before.write_text(
        yaml.safe_dump({name: v for name, v in yaml.safe_load(before.read_text()).items() if name != "matryoshka_widths"})
    )
    write_run(tmp_path / "new", config(), lines=2)
    assert columns.differing_settings(records_of(tmp_path)) == []
    write_run(tmp_path / "nested", config(matryoshka_widths=WIDTHS), lines=2)
    assert [run_records.coder_kind(record.config) for record in records_of(tmp_path)] == ["topk", "matryoshka_topk", "topk"]
    assert call(capsys, tmp_path, "--where", "kind=topk")[1].endswith("2 done\n")


def test_files_have_kinds_levels_and_thresholds(kinds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pyarrow import parquet

    paths = {kind: tmp_path / f"all.{kind}" for kind in ("csv", "json", "parquet")}
    assert call(capsys, kinds, *(f"--{kind}={path}" for kind, path in paths.items()))[0] == 0
    plain = json.loads(paths["json"].read_text())
    with paths["csv"].open() as file:
        text = list(csv.DictReader(file))
    typed = parquet.read_table(paths["parquet"]).to_pylist()
    assert [row["kind"] for row in plain] == [row["kind"] for row in text] == [row["kind"] for row in typed]
    assert {row["run"]: row["kind"] for row in plain} == {f"{name}-k{k}-": name for name in KINDS for k in (8, 32)}
    for row, other, third in zip(plain, text, typed, strict=True):
        assert list(row) == list(other) == list(third)
        evaluation = record_of(kinds / row["run"]).evaluation
        assert evaluation is not None
        (coder,) = evaluation.coders
        levels = {level.width: level for level in coder.levels}
        for width in WIDTHS:
            level = levels.get(width)
            assert row[f"fvu_width_{width}"] == third[f"fvu_width_{width}"] == (level and level.fvu)
            assert row[f"l0_width_{width}"] == (level and level.l0)
            assert other[f"l0_width_{width}"] == ("" if level is None else str(level.l0))
        for name in ("threshold", *THRESHOLD_QUANTILES):
            assert row[name] == third[name] == coder.thresholds.get(name)
        assert (row["threshold"] is not None) == (row["activation"] == "batchtopk")
        assert (row["threshold_p50"] is not None) == (row["kind"] == "jumprelu")


def test_every_series_has_a_look_of_its_own(tmp_path: Path) -> None:
    """Of two types and two widths of every kind, whichever two are shown: in colour, and where these are of one kind or type, in the marker."""
    for model_type in ("sae", "transcoder"):
        for factor in (8, 32):
            for name, settings in KINDS.items():
                given = settings | ({"matryoshka_widths": [64, 64 * factor]} if "matryoshka_widths" in settings else {})
                made = config(model_type=model_type, hookpoints=["layers.6"], expansion_factor=factor, **given)
                write_run(tmp_path / f"{model_type}-{factor}-{name}", made, lines=1)
    series = sorted({coder.series for coder in plot_data.plotted_coders(records_of(tmp_path), print)})
    assert len(series) == 2 * 2 * len(KINDS)
    colours = plot_style.palette(series)
    for i in (0, 1):
        looks = {(colours[each], plot_style.marker(each)[i]) for each in series}
        assert len(looks) == len(series)
        for size, model_type in {(each.size, each.model_type) for each in series}:
            beside = [each for each in series if (each.size, each.model_type) == (size, model_type)]
            for look in (colours.__getitem__, lambda one, i=i: plot_style.marker(one)[i], lambda one, i=i: plot_style.dash(one)[i]):
                assert len({look(each) for each in beside}) == len(CODER_KINDS)


def test_the_pareto_picture_has_a_line_and_points_for_each_kind_and_the_legend_names_them(kinds: Path) -> None:
    coders = plot_data.plotted_coders(records_of(kinds), print)
    colours = plot_style.palette(coder.series for coder in coders)
    figure = static_plots.draw_pareto(coders)
    assert figure is not None
    (legend,) = figure.legends
    entries = {handle.get_label(): handle for handle in legend.legend_handles}
    for series in colours:
        looks = (colours[series], plot_style.marker(series)[0])
        handle = entries[f"sae, {series.kind}, 512 latents"]
        assert (to_hex(handle.get_color()), handle.get_marker()) == looks
        for axis in figure.axes:
            drawn = [line for line in axis.lines if to_hex(line.get_color()) == colours[series]]
            line, points = drawn
            members = [coder for coder in coders if coder.series == series]
            assert sorted(points.get_xdata()) == sorted(coder.l0 for coder in members)
            assert points.get_marker() == plot_style.marker(series)[0]
            assert len(line.get_xdata()) == 2
            assert line.get_linestyle() == handle.get_linestyle()
    assert axis.get_xlabel() == plot_style.L0_LABEL


def test_the_page_has_a_trace_for_each_kind_and_sections_of_levels_and_thresholds(kinds: Path) -> None:
    records = records_of(kinds)
    coders = plot_data.plotted_coders(records, print)
    drawn = interactive_plots.draw_pareto(list(enumerate(coders)))
    assert drawn is not None
    points = [trace for trace in drawn[0].data if trace.mode == "markers" and trace.yaxis == "y" and trace.customdata is not None]
    assert {trace.name for trace in points} == {f"sae, {name}, 512 latents" for name in KINDS}
    assert len({trace.marker.symbol for trace in points}) == len({trace.marker.color for trace in points}) == len(KINDS)
    lines = [trace for trace in drawn[0].data if trace.mode == "lines" and trace.yaxis == "y"]
    assert len({trace.line.dash for trace in lines}) == len(KINDS)
    text = page.report_page(records, coders)
    assert 'id="levels"' in text
    assert 'id="thresholds"' in text
    plain = [record for record in records if record.config["activation"] == "topk" and record.config["matryoshka_widths"] is None]
    without = page.report_page(plain, plot_data.plotted_coders(plain, print))
    assert 'id="levels"' not in without
    assert 'id="thresholds"' not in without


def test_levels_and_thresholds_are_drawn_as_they_were_measured_and_told_in_the_tooltip(kinds: Path) -> None:
    coders = plot_data.plotted_coders(records_of(kinds), print)
    levels, thresholds = (
        draw(list(enumerate(coders))) for draw in (interactive_plots.draw_levels, interactive_plots.draw_thresholds)
    )
    assert levels is not None
    assert thresholds is not None
    assert [trace.name for trace in levels[0].data] == ["sae, matryoshka, 512 latents", "sae, matryoshka_topk, 512 latents"]
    for trace in levels[0].data:
        for i in set(trace.customdata):
            own = trace.customdata == i
            assert trace.x[own].tolist()[:-1] == WIDTHS
            assert trace.y[own].tolist()[:-1] == pytest.approx([level.fvu for level in coders[i].levels], rel=1e-6)
            facts = dict(coders[i].facts)
            assert facts["FVU of the first 64"] == f"{coders[i].levels[0].fvu:.4f}"
            assert facts["kind"] == coders[i].kind
            assert "FVU of the first 512" not in facts, "that is the held-out FVU"
    (trace,) = thresholds[0].data
    assert trace.name == "sae, jumprelu, 512 latents"
    assert trace.line.color == plot_style.palette(coder.series for coder in coders)[coders[trace.customdata[0]].series]
    assert trace.y.tolist()[:7] == [0, 10, 25, 50, 75, 90, 100]
    assert trace.x.tolist()[:7] == pytest.approx(list(coders[trace.customdata[0]].thresholds.values()), rel=1e-6)
    told = {coder.kind: dict(coder.facts).get("fires above") for coder in coders}
    assert told["batchtopk"] == "0.4"
    assert told["jumprelu"] == "min 0.02, 10 % 0.05, 25 % 0.095, 50 % 0.17, 75 % 0.245, 90 % 0.29, max 0.32"
    assert told["topk"] is None


def test_where_the_coefficient_sets_the_sparsity_the_line_joins_its_coders_and_k_is_no_tick(tmp_path: Path) -> None:
    settings = {"activation": ["jumprelu"], "jumprelu_loss": ["step"], "l0_coefficient": [None, 1e-3, 1e-2], "k": [7]}
    grid(tmp_path, lines=2, **settings)
    coders = plot_data.plotted_coders(records_of(tmp_path), print)
    assert len(pareto.best_of_each_k(coders, pareto.TRADEOFFS[0].cost)) == 3
    assert plot_style.k_ticks(coders) == []
    figure = static_plots.draw_pareto(coders)
    assert figure is not None
    figure.canvas.draw()
    low, high = figure.axes[0].get_xlim()
    shown = [
        label.get_text()
        for label, x in zip(figure.axes[0].get_xticklabels(), figure.axes[0].get_xticks(), strict=True)
        if low <= x <= high
    ]
    assert shown
    assert all(shown)
    drawn = interactive_plots.draw_pareto(list(enumerate(coders)))
    assert drawn is not None
    assert list(drawn[0].layout.xaxis.tickvals) == list(figure.axes[0].get_xticks()), "not at k"
    quadratic = write_run(tmp_path / "quadratic", config(activation="jumprelu", jumprelu_loss="quadratic", k=9), lines=2)
    assert plot_style.k_ticks(plot_data.plotted_coders([record_of(quadratic)], print)) == [9]
