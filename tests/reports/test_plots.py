"""The plots of sae-report: their data, what they hold, that they are the same each time."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.made_up_runs import config, evaluation, grid, metrics, write_run
from helpers.reporting import call
from sae_transcoder.reports import pareto, plot_data, plot_style
from sae_transcoder.run_store import eval_file, run_records
from sae_transcoder.run_store.status import State


def test_pareto_optimal_points_by_trying_all_pairs() -> None:
    source = random.Random(0)
    for size in (0, 1, 2, 5, 40):
        for _ in range(60):
            points = [(source.choice([1.0, 2.0, 4.0]), source.randrange(6) / 2) for _ in range(size)]
            dominated = [
                any(x <= a and y <= b and (x < a or y < b) for x, y in points) for a, b in points
            ]  # fmt: skip
            assert pareto.pareto_mask(points) == [not each for each in dominated]


def test_of_coders_of_nearly_one_l0_the_best_alone_is_optimal() -> None:
    assert pareto.pareto_mask([(31.86, 0.165), (32.01, 0.146)]) == [False, True]
    assert pareto.pareto_mask([(30.0, 0.165), (32.01, 0.146)]) == [True, True]
    assert pareto.pareto_mask([(31.86, 0.146), (32.01, 0.146)]) == [True, True]


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.02, 0.6], [0.02, 0.05, 0.1, 0.2, 0.5]),
        ([0.13, 0.24], [0.12, 0.15, 0.18, 0.21, 0.24]),
        ([1e-5, 1.0], [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0]),
    ],
)
def test_a_logarithmic_axis_has_several_plain_numbers(values: list[float], ticks: list[float]) -> None:
    assert plot_style.log_ticks(values) == pytest.approx(ticks)


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
    assert "sae, topk, 512 latents" in words
    assert "transcoder, topk, 512 latents" in words
    assert any("Pareto-optimal" in word for word in words)
    assert {"layers.6", "FVU, training", "training tokens (millions)", "k = 8", "k = 32"} <= set(text_of(out / "curves.svg"))
    densities = text_of(out / "densities.svg")
    never = sum(
        plot_data.density_histogram(d).never for path in sweep.glob("sae*") for d in eval_file.read_densities(path).values()
    )
    assert f"sae, topk, 512 latents (never fired: {never:,} of 1,536)" in densities


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
    assert [word for word in text_of(tmp_path / "out" / "curves.svg") if "sae" in word] == ["sae, topk, 512 latents"]
    assert "16" not in text_of(tmp_path / "out" / "pareto.svg")


def test_curves_alone_and_nothing_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "curves" / "a", config(), lines=4, evaluated=False)
    code, _, _ = call(capsys, tmp_path / "curves", "--out", tmp_path / "out")
    assert code == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["curves.png", "curves.svg", "report.html"]
    assert "sae, topk, x8" in text_of(tmp_path / "out" / "curves.svg")
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
    assert not imported() & (always | {"matplotlib", "plotly", "pyarrow", "scipy"})
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
