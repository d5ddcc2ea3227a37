"""The line that ends a run."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from helpers.short_runs import short
from sae_transcoder.config.run_length import run_length
from sae_transcoder.data.token_sets import Supply
from sae_transcoder.preflight import header
from sae_transcoder.preflight.plan import make_plan
from sae_transcoder.process import progress
from sae_transcoder.run_store.eval_file import CoderMetrics, Evaluation, LevelMetrics
from sae_transcoder.run_store.scores import with_scores
from sae_transcoder.training import display, engine


def closing(capsys: pytest.CaptureFixture[str], *coders: CoderMetrics) -> str:
    display.closing_line(Path("runs/a"), 12, 3.4, Evaluation({}, list(coders)), Console(width=1000))
    return capsys.readouterr().out


def test_the_closing_line_has_l0_beside_k_and_the_mean_fvu_of_each_smaller_dictionary(capsys) -> None:
    def coder(name: str, fvu: float, level_fvu: float) -> CoderMetrics:
        levels = (LevelMetrics(32, level_fvu, 5.0), LevelMetrics(128, fvu, 9.0))
        return CoderMetrics(name, name, None, 32, 128, 8, {"fvu": fvu, "l0": 10 * fvu + 6}, levels)

    assert closing(capsys, coder("layers.1", 0.2, 0.4), coder("layers.2", 0.3, 0.5)) == (
        "done: 12 steps in 3 s, held-out FVU 0.2500 (mean of 2: 0.2000 to 0.3000), L0 8.5 at k 8 (mean of 2: 8.0 to 9.0), "
        "FVU of the first 32 latents 0.4500, coders in runs/a/coders\n"
    )
    alone = CoderMetrics("a", "a", None, 32, 128, 8, {"fvu": 0.2, "l0": 8.0})
    assert "held-out FVU 0.2000, L0 8.0 at k 8, coders in" in closing(capsys, alone)


@pytest.mark.parametrize(
    ("overrides", "supply", "told"),
    [
        (["max_samples=64"], Supply(64, exact=True), "all 64 sequences of 32"),
        (["max_samples=64"], Supply(1497, exact=True), "64 of 1,497 sequences of 32 (max_samples)"),
        (["max_samples=64", "max_steps=4"], Supply(1497, exact=False), "16 of about 1,500 sequences of 32 (max_steps)"),
        (["max_samples=64", "max_tokens=1_100"], Supply(1497, exact=True), "32 of 1,497 sequences of 32 (max_tokens)"),
        (["max_samples=64"], None, "64 sequences of 32"),
    ],
    ids=str,
)
def test_the_header_says_of_how_many_sequences_some_are_read_and_which_field_leaves_out_the_others(
    overrides: list[str], supply: Supply | None, told: str, cache: Path, tmp_path: Path
) -> None:
    plan = make_plan(short(cache, tmp_path, *overrides))
    assert header.sequences(replace(plan, tokens=replace(plan.tokens, supply=supply))) == told


@pytest.mark.parametrize(
    ("overrides", "ranks", "told"),
    [
        (["grad_acc_steps=2"], 1, "8, each of 4 x 2 sequences (batch_size x grad_acc_steps)"),
        (["grad_acc_steps=1"], 1, "16 of 4 sequences"),
        (["grad_acc_steps=1", "batch_size=1"], 1, "64 of 1 sequence"),
        (["grad_acc_steps=1"], 2, "8, each of 4 x 2 sequences (batch_size x ranks)"),
        (["grad_acc_steps=2"], 4, "2, each of 4 x 2 x 4 sequences (batch_size x grad_acc_steps x ranks)"),
    ],
    ids=str,
)
def test_the_header_says_what_the_sequences_of_a_step_are_made_of(
    overrides: list[str], ranks: int, told: str, cache: Path, tmp_path: Path
) -> None:
    plan = make_plan(short(cache, tmp_path, *overrides))
    shared = replace(plan, length=run_length(plan.cfg, plan.length.samples, ranks), ranks=ranks)
    assert header.facts(shared)["steps"] == told


def test_an_evaluation_shows_how_far_it_is_in_sequences_and_coders(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY", -1.0)
    engine.train([short(cache, tmp_path, "max_steps=1", "eval_samples=8")])
    lines = [line.split(",")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("evaluation of")]
    assert lines == [
        *(f"evaluation of the coders {count} of 8 sequences" for count in (4, 8)),
        "evaluation of likeness between latents 1 of 1 coders",
        *(f"evaluation of the model with coders in place {count} of 8 sequences" for count in (4, 8)),
    ]


def test_the_line_of_the_last_step_stands_before_its_evaluation(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY", -1.0)
    engine.train([short(cache, tmp_path, "max_steps=3")])
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("step ", "evaluation of"))]
    assert [line.startswith("step 3/3") for line in shown] == [True, *[False] * (len(shown) - 1)]
    assert len(shown) > 1
    assert "FVU 0." in shown[0]
    assert "0 s left, then " in shown[0]


def test_an_evaluation_is_expected_to_take_longer_where_the_training_does() -> None:
    bar = display.Bar(Console(), total=10, tokens_total=2000, evaluation=6.0, expected_speed=200.0)
    assert bar.after == ", then about 6 s of evaluation"
    bar.tokens, bar.start = 1000, time.monotonic() - 10
    assert bar.after == ", then about 12 s of evaluation"
    assert display.Bar(Console(), total=10, tokens_total=2000).after == ", then the evaluation"


def test_the_time_left_goes_by_the_last_half_minute(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 1000.0
    monkeypatch.setattr(display.time, "monotonic", lambda: now)
    bar = display.Bar(Console(), total=100, tokens_total=100_000)
    for step in range(1, 51):
        now += 600 if step == 10 else 1  # the machine sleeps
        bar.update(step, 1000 * step)
    assert bar.tokens_per_s == pytest.approx(50_000 / 649)
    assert capsys.readouterr().out.splitlines()[-1].split("  ")[-1] == "57 s left, then the evaluation", "at step 43"


def test_progress_shows_the_fvu_of_a_run_or_the_range_of_several() -> None:
    bar = display.Bar(Console(), total=10, tokens_total=2000)
    assert bar.fvu == "FVU -"
    bar.set_fvu(Path("a"), [0.2, 0.4])
    assert bar.fvu == "FVU 0.3000"
    bar.set_fvu(Path("b"), [0.5])
    assert bar.fvu == "FVU 0.3000 to 0.5000 of 2 runs"


def test_the_closing_line_says_that_a_run_is_worse_than_nothing_and_why_a_score_is_missing(capsys) -> None:
    losses = {"ce_loss_without_sae": 3.0, "ce_loss_with_sae": 3.1, "ce_loss_with_ablation": 2.5, "ce_loss_ablation_std_error": 0.1}
    bad = CoderMetrics("a", "a", None, 32, 128, 8, with_scores(losses | {"fvu": 68.98, "l0": 8.0, "frac_alive": 0.605}))
    assert closing(capsys, bad) == (
        "done: 12 steps in 3 s, held-out FVU 68.9800, L0 8.0 at k 8, CE loss score - (with zeros in the module's place the CE falls by 0.5 ± 0.1 "
        "nats), never fired 39.5 %, FVU above 1: worse than the mean output at every token, try a lower lr, coders in runs/a/coders\n"
    )
    good = CoderMetrics("b", "b", None, 32, 128, 8, {"fvu": 0.2, "l0": 8.0})
    line = closing(capsys, bad, good)
    assert "CE loss score of a - (" in line
    assert "FVU of a above 1" in line
    assert "above 1" not in closing(capsys, good)
