"""The line that ends a run."""

from pathlib import Path

import pytest
from rich.console import Console

from sae_transcoder.run_store.eval_file import CoderMetrics, Evaluation, LevelMetrics
from sae_transcoder.training import display


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
