"""When a score of the language model says something, and what stands in its place where it does not."""

import json
import math
from pathlib import Path

import pytest

from helpers.made_up_runs import config, write_run
from sae_transcoder.run_store import eval_file, scores
from sae_transcoder.run_store.eval_file import CoderMetrics, Evaluation

LOSSES = {"ce_loss_without_sae": 3.0, "ce_loss_with_sae": 3.1, "ce_loss_with_ablation": 4.0, "ce_loss_ablation_std_error": 0.1}


@pytest.mark.parametrize(
    ("changes", "score", "reason"),
    [
        ({}, 0.9, None),
        ({"ce_loss_with_sae": 2.9}, 1.1, None),  # better than without coders: the effect is large enough for that to mean something
        ({"ce_loss_with_sae": 4.5}, -0.5, None),
        ({"ce_loss_ablation_std_error": 0.26}, math.nan, "with zeros in the module's place the CE rises by only 1 ± 0.26 nats"),
        ({"ce_loss_with_ablation": 2.8}, math.nan, "with zeros in the module's place the CE falls by 0.2 ± 0.1 nats"),
        ({"ce_loss_with_ablation": 3.0}, math.nan, "with zeros in the module's place the CE rises by only 0 ± 0.1 nats"),
        ({"ce_loss_ablation_std_error": math.nan}, math.nan, "of one held-out sequence the error of the CE is unknown; evaluate two or more"),
        ({"ce_loss_with_ablation": math.nan}, math.nan, None),
    ],
)  # fmt: skip
def test_a_score_stands_where_the_ablation_has_an_effect_beyond_its_error(
    changes: dict[str, float], score: float, reason: str | None
) -> None:
    metrics = scores.with_scores(LOSSES | changes)
    assert metrics["ce_loss_score"] == pytest.approx(score, nan_ok=True)
    assert scores.reasons(metrics).get("ce_loss_score") == reason
    assert {name: metrics[name] for name in LOSSES} == pytest.approx(LOSSES | changes, nan_ok=True)


def test_the_file_has_null_and_the_reason_and_keeps_the_losses(tmp_path: Path) -> None:
    metrics = scores.with_scores(LOSSES | {"ce_loss_with_ablation": 2.8})
    coder = CoderMetrics("layers.1", "layers.1", None, 32, 64, 4, metrics)
    eval_file.write(tmp_path, Evaluation({}, [coder]))
    (entry,) = json.loads((tmp_path / "eval.json").read_text())["eval_result_unstructured"]["coders"]
    assert entry["metrics"]["model_performance_preservation"] == LOSSES | {"ce_loss_with_ablation": 2.8, "ce_loss_score": None}
    assert entry["undefined"] == {"ce_loss_score": "with zeros in the module's place the CE falls by 0.2 ± 0.1 nats"}
    found = eval_file.read(tmp_path)
    assert found is not None
    assert found.coders[0].metrics == pytest.approx(metrics, nan_ok=True)


@pytest.mark.parametrize(("ablated", "kept"), [(3.5, True), (2.8, False)])
def test_of_a_file_of_before_which_has_no_errors_the_sign_of_the_effect_decides(ablated: float, kept: bool, tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", config(), lines=2)
    written = json.loads((directory / "eval.json").read_text())
    (entry,) = written["eval_result_unstructured"]["coders"]
    for category in entry["metrics"].values():
        for name in [name for name in category if name.endswith("std_error") or "mean_ablation" in name]:
            del category[name]
    losses = entry["metrics"]["model_performance_preservation"]
    losses |= {"ce_loss_score": -0.39, "ce_loss_without_sae": 3.0, "ce_loss_with_ablation": ablated}
    (directory / "eval.json").write_text(json.dumps(written))
    found = eval_file.read(directory)
    assert found is not None
    assert found.coders[0].metrics["ce_loss_score"] == pytest.approx(-0.39 if kept else math.nan, nan_ok=True)
    assert ("ce_loss_score" in scores.reasons(found.coders[0].metrics)) is not kept
