"""What sae-report shows in place of numbers that say nothing, and of runs that are worse than nothing."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.made_up_runs import config, evaluation, metrics, write_run
from helpers.reporting import call
from sae_transcoder.metric_names import END_TO_END
from sae_transcoder.reports import page, pareto, plot_data, static_plots
from sae_transcoder.run_store import eval_file, run_records
from sae_transcoder.run_store.scores import with_scores
from sae_transcoder.run_store.status import State

REASON = "with zeros in the module's place the CE falls by 0.25 ± 0.1 nats"


def evaluated(directory: Path, settings: dict[str, Any], **changes: float) -> Path:
    """A run whose coder has these metrics."""
    write_run(directory, settings, lines=4)
    found = metrics(settings, np.random.default_rng(0)) | changes
    found = with_scores(found) if "ce_loss_with_ablation" in changes else found
    eval_file.write(directory, evaluation(settings, {"layers.6": found}, 40, np.random.default_rng(0)))
    return directory


def test_a_score_that_says_nothing_is_a_dash_with_its_reason_in_table_page_pictures_and_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for k in (8, 16):
        evaluated(tmp_path / "runs" / f"k{k}", config(k=k), ce_loss_with_ablation=2.75)
    evaluated(tmp_path / "runs" / "other", config(k=32))
    code, out, _ = call(capsys, tmp_path / "runs", "--out", tmp_path / "out", "--json", tmp_path / "all.json")
    assert code == 0
    lines = out.splitlines()
    assert f"layers.6 has no CE score in k8, k16: {REASON}" in lines
    place = lines[0].split().index("score") - 3  # heads of several words: train FVU, held-out FVU, CE score
    assert [line.split()[place] for line in lines[1:4]] == ["-", "-", lines[3].split()[place]]
    assert float(lines[3].split()[place]) < 1
    rows = json.loads((tmp_path / "all.json").read_text())
    assert [(row["ce_loss_score"] is None, row["undefined_scores"]) for row in rows] == [
        (True, f"ce_loss_score: {REASON}"), (True, f"ce_loss_score: {REASON}"), (False, None)
    ]  # fmt: skip
    assert [row["ce_loss_with_ablation"] for row in rows] == [2.75, 2.75, 5.0]
    assert f"layers.6 has no CE score in k8, k16: {REASON}" in (tmp_path / "out" / "report.html").read_text().replace("&#x27;", "'")
    coders = plot_data.plotted_coders(run_records.read_all([tmp_path / "runs"], print), print)
    assert [dict(coder.facts)["CE score"] == f"- ({REASON})" for coder in coders] == [True, True, False]
    assert len(pareto.TRADEOFFS[1].plottable(coders)) == 1
    figure = static_plots.draw_pareto(coders)
    assert figure is not None
    assert [" ".join(text.get_text().split()) for text in figure.axes[1].texts] == [f"2 without CE loss score: {REASON}"]


def test_where_no_coder_has_a_score_the_picture_says_why(tmp_path: Path) -> None:
    evaluated(tmp_path / "a", config(), ce_loss_with_ablation=2.75)
    coders = plot_data.plotted_coders(run_records.read_all([tmp_path], print), print)
    figure = static_plots.draw_pareto(coders)
    assert figure is not None
    assert REASON in " ".join(figure.axes[1].texts[0].get_text().split())
    assert f"1 without CE loss score: {REASON}." in page.report_page([], coders).replace("&#x27;", "'")


def test_a_score_that_was_not_asked_for_is_a_dash_with_its_reason_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in (8, 16):
        settings = config(k=k, eval_end_to_end=False)
        directory = write_run(tmp_path / f"k{k}", settings, lines=4)
        found = metrics(settings, np.random.default_rng(0))
        kept = {name: value for name, value in found.items() if name not in END_TO_END}
        eval_file.write(directory, evaluation(settings, {"layers.6": kept}, 40, np.random.default_rng(0)))
    reason = "eval_end_to_end=false leaves it out"
    assert call(capsys, tmp_path)[1].splitlines()[-1] == f"no CE score: {reason}"
    write_run(tmp_path / "measured", config(k=32), lines=4)
    write_run(tmp_path / "queued", config(k=64, eval_end_to_end=False), State.queued)
    assert call(capsys, tmp_path)[1].splitlines()[-1] == f"no CE score in 2 of 4 runs: {reason}"
    assert f"<p>no CE score in 2 of 4 runs: {reason}</p>" in page.report_page(run_records.read_all([tmp_path], print), [])


def test_a_coder_worse_than_the_mean_is_told_and_never_ringed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluated(tmp_path / "bad", config(k=8, lr=1.0), fvu=68.98)
    evaluated(tmp_path / "good", config(k=16), fvu=0.3)
    out = call(capsys, tmp_path)[1]
    assert out.splitlines()[-1] == "held-out FVU above 1, which is worse than the mean output at every token: bad (69)"
    coders = plot_data.plotted_coders(run_records.read_all([tmp_path], print), print)
    for tradeoff in pareto.TRADEOFFS:
        assert [coder.fvu for coder in pareto.pareto_optimal(coders, tradeoff)] == [0.3]


def test_dead_is_a_dash_where_no_latent_can_be_dead_and_never_fired_is_the_same_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = write_run(tmp_path / "run", config(dead_feature_threshold=4 * 10 * 2048), lines=4)
    later = write_run(tmp_path / "later", config(dead_feature_threshold=4 * 10 * 2048 - 1, k=8), lines=4)
    for place, (dead, shown) in {directory: (None, "-"), later: (0.02, "2.0 %")}.items():
        assert call(capsys, place, "--json", tmp_path / "one.json")[0] == 0
        (row,) = json.loads((tmp_path / "one.json").read_text())
        assert row["dead_fraction"] == dead
        line = call(capsys, place)[1].splitlines()[1]
        assert line.split()[-4 if dead else -3 :] == ["3.0", "%", *shown.split()]
    below = "no latent can be dead{}: trained on dead_feature_threshold tokens or fewer"
    assert call(capsys, directory)[1].splitlines()[-1] == below.format("")
    assert call(capsys, tmp_path)[1].splitlines()[-1] == below.format(" in 1 of 2 runs")
    assert "no latent can be dead" not in call(capsys, later)[1]
    records = run_records.read_all([directory], print)
    (coder,) = plot_data.plotted_coders(records, print)
    assert dict(coder.facts)["never fired"] == "3.0 %"
    assert math.isclose(run_records.values(records[0])["never_fired"], 0.03)
    assert "<th>never fired</th>" in page.report_page(records, [coder])
