"""A signal while coders are evaluated, which can take longer than the training."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.short_runs import assert_same, lines, short
from sae_transcoder.config import Config, run_dir
from sae_transcoder.evaluation import heldout
from sae_transcoder.process.stop_signal import Stopped
from sae_transcoder.run_store import eval_file, status
from sae_transcoder.run_store.status import State
from sae_transcoder.training import engine

pytestmark = pytest.mark.device

SAYS = "SIGTERM: saves after this batch, then stops; a second signal stops at once\n"


def signalled(function: Callable[..., Any], at_call: int) -> Callable[..., Any]:
    """The function, at whose call of that number, counted from 1, SIGTERM comes."""
    calls = 0

    def called(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at_call:
            signal.raise_signal(signal.SIGTERM)
        return function(*given, **named)

    return called


@pytest.mark.parametrize(
    ("settings", "patched", "at_call", "step"),
    [
        pytest.param([], "capture", 1, 16, id="at the end"),
        pytest.param([], "measure_splices", 1, 16, id="with coders in place", marks=pytest.mark.slow),
        pytest.param(["eval_every=6", "grad_acc_steps=2", "log_every=2"], "capture", 1, 6, id="between steps"),
        pytest.param(["save_every=4", "eval_every=16"], "capture", 1, 4, id="for the best coders", marks=pytest.mark.slow),
    ],
)
def test_a_signal_in_an_evaluation_saves_and_the_same_command_ends_as_if_undisturbed(
    settings: list[str], patched: str, at_call: int, step: int,
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def runs(folder: str) -> list[Config]:
        return [short(cache, tmp_path / folder, f"k={k}", *settings) for k in (4, 8)]

    engine.train(runs("undisturbed"))
    with monkeypatch.context() as patch:
        patch.setattr(heldout, patched, signalled(getattr(heldout, patched), at_call))
        with pytest.raises(Stopped):
            engine.train(runs("stopped"))
    assert SAYS in capfd.readouterr().err
    for cfg in runs("stopped"):
        found = status.read(run_dir(cfg))
        assert found is not None
        assert (found.state, found.step, found.why) == (State.interrupted, step, "stopped by SIGTERM")
        assert not [line for line in lines(run_dir(cfg)) if line["step"] >= step], "the step's line comes with its evaluation"
    results = engine.train(runs("stopped"))
    for one, other, result in zip(runs("undisturbed"), runs("stopped"), results, strict=True):
        assert_same(run_dir(one), run_dir(other))
        expected = eval_file.read(run_dir(one))
        assert expected is not None
        assert [c.metrics for c in result.evaluation.coders] == [c.metrics for c in expected.coders]
        assert not (run_dir(other) / "resume").exists()
