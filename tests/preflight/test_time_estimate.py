"""How long runs will take, from the records of others."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from helpers.short_runs import short
from sae_transcoder.config import Hardware
from sae_transcoder.preflight import header, time_estimate
from sae_transcoder.preflight.plan import Plan, make_plan
from sae_transcoder.preflight.work import evaluation_work, evaluations, training_work
from sae_transcoder.training import display, engine


@pytest.fixture
def plan(cache: Path, tmp_path: Path) -> Plan:
    """A run of 16 steps, in a cache in which nothing is recorded."""
    made = make_plan(short(cache, tmp_path / "runs"))
    return replace(made, cfg=replace(made.cfg, cache_dir=str(tmp_path / "cache")))


def like(plan: Plan, **fields: object) -> Plan:
    """The plan with other settings; lengths and sizes stay."""
    return replace(plan, cfg=replace(plan.cfg, **fields))  # type: ignore[arg-type]


def test_a_run_that_was_timed_is_estimated_to_take_what_it_took(plan: Plan) -> None:
    assert time_estimate.estimate([plan]) is None
    time_estimate.add_training([plan], 30.0)
    assert str(time_estimate.estimate([plan])) == "training 30 s, evaluation unknown"
    time_estimate.add_evaluation([plan], 6.0)
    assert str(time_estimate.estimate([plan])) == "about 36 s: training 30 s, evaluation 6 s"


def test_an_evaluation_that_takes_longer_than_the_training_is_told_with_what_shortens_it(plan: Plan) -> None:
    time_estimate.add_training([plan], 6.0)
    time_estimate.add_evaluation([plan], 30.0)
    assert header.time_needed([plan]) == (
        "about 36 s: training 6 s, evaluation 30 s (less with an eval_samples below 4, or eval_end_to_end=false)"
    )
    time_estimate.add_training([plan], 60.0)
    assert header.time_needed([plan]) == "about 90 s: training 60 s, evaluation 30 s"


def test_other_runs_take_as_much_longer_as_they_compute_more(plan: Plan) -> None:
    time_estimate.add_training([plan], 30.0)
    time_estimate.add_evaluation([plan], 6.0)
    twice = replace(plan, length=replace(plan.length, samples=2 * plan.length.samples))
    assert time_estimate.estimate([twice]) == time_estimate.Estimate(pytest.approx(60), pytest.approx(6))
    wider = time_estimate.estimate([like(plan, expansion_factor=4)])
    assert 30 < wider.training < 60
    pair = time_estimate.estimate([plan, like(plan, k=16)])
    assert 30 < pair.training < 60, "they share the forward"
    assert 6 < pair.evaluation < 12
    assert time_estimate.estimate([like(plan, eval_every=4)]).evaluation == pytest.approx(4 * 6)
    assert time_estimate.estimate([like(plan, eval_end_to_end=False)]).evaluation is None, "it computes less than a quarter"


@pytest.mark.parametrize(
    "fields",
    [dict(model_name="other"), dict(threads=2), dict(dtype="float64"), dict(hardware=Hardware.slurm), dict(expansion_factor=64)],
    ids=str,
)
def test_nothing_is_estimated_from_another_model_or_machine_or_from_far_less_work(plan: Plan, fields: dict[str, object]) -> None:
    time_estimate.add_training([plan], 30.0)
    found = time_estimate.estimate([like(plan, **fields)])
    assert found is None


def test_the_nearest_record_counts_the_latest_of_equals_and_damaged_lines_none(plan: Plan) -> None:
    for seconds in (10.0, 30.0):
        time_estimate.add_training([plan], seconds)
    time_estimate.add_training([like(plan, expansion_factor=4)], 1000.0)
    with time_estimate.records_path(plan.cfg).open("a") as file:
        file.write('{"kind": "training", "seconds": 0}\n[]\n{"kind": "trai')
    assert time_estimate.estimate([plan]).training == pytest.approx(30)


def test_the_file_of_records_stays_small(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_estimate, "SHORTENED", 3000)
    monkeypatch.setattr(time_estimate, "KEPT", 2)
    for seconds in range(10, 30):
        time_estimate.add_training([plan], seconds)
    assert time_estimate.records_path(plan.cfg).stat().st_size <= 3000
    assert time_estimate.estimate([plan]).training == pytest.approx(29)


def test_a_run_records_its_times_and_the_next_header_has_them(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(time_estimate, "AT_LEAST", dict.fromkeys(time_estimate.AT_LEAST, 0.0))
    monkeypatch.setattr(display, "PLAIN_EVERY", -1.0)
    engine.train([plan.cfg])
    first = capsys.readouterr().out
    assert f"time: {header.UNKNOWN_TIME}\n" in first
    assert " left, then the evaluation\n" in first
    records = [json.loads(line) for line in time_estimate.records_path(plan.cfg).read_text().splitlines()]
    assert {record["kind"]: record["total"] for record in records} == {
        "evaluation": evaluation_work([plan]).total,
        "training": training_work([plan]).total,
    }
    header.print_header([plan], Console(width=1000))
    assert "time: about " in capsys.readouterr().out


def test_a_run_is_measured_at_each_evaluation_and_for_the_best_at_each_save(plan: Plan) -> None:
    assert evaluations(plan) == (1, 0), "at its end"
    assert evaluations(like(plan, eval_every=4, save_every=2)) == (4, 4)
    assert evaluations(like(plan, save_every=2, save_best=False)) == (1, 0)
