"""Where does a training step's time go? torch.profiler's table of this project's one run of single.py, or of the pack of grid.py.

    python benchmarks/ourselves/step_profile.py                     the pack of 8; about a minute
    python benchmarks/ourselves/step_profile.py --single            the one run
    git worktree add ../before COMMIT && PYTHONPATH=../before python benchmarks/ourselves/step_profile.py      an older version, for comparison

The time of an operation is its own, without that of operations which it calls. What is left is Python's time, and the profiler's.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[1]))

import common
from contenders.meter import Coder, Meter
from contenders.ours import configs, timed
from peers.grid import GRID
from peers.single import LATENTS, K
from sae_transcoder.evaluation import heldout
from sae_transcoder.preflight.plan import make_plan
from sae_transcoder.training import engine

SKIPPED = 2  # steps in which memory is still being found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--single", action="store_true", help="one run, not the pack of 8")
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps that are profiled (10)")
    parser.add_argument("--rows", type=int, default=16, help="operations shown (16)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--markdown", action="store_true", help="a table for a README")
    asked = parser.parse_args()
    on_gpu = asked.device.startswith("cuda")
    profiler = profile(activities=[ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else []))
    meter = Meter(asked.device)
    measure = heldout.measure

    def ended(*arguments: Any, **named: Any) -> Any:
        profiler.stop()
        return measure(*arguments, **named)

    with tempfile.TemporaryDirectory() as folder:
        bench = common.prepare(Path(folder), SKIPPED + asked.steps, asked.device, Path())
        shapes = [(K, LATENTS)] if asked.single else [(k, expansion * bench.width) for k, expansion in GRID]
        cfgs = configs(bench.job(common.OURS, [Coder(k, latents, 1e-2) for k, latents in shapes]))
        make_plan(cfgs[0])
        with patch.object(heldout, "measure", ended), timed(meter, SKIPPED, profiler.start):
            engine.train(cfgs)
    step = 1000 * meter.found()["seconds"] / asked.steps
    own = [
        (e.key, (e.self_device_time_total if on_gpu else e.self_cpu_time_total) / 1000, e.count) for e in profiler.key_averages()
    ]
    own.sort(key=lambda found: -found[1])
    rows = [
        [key, f"{time / asked.steps:.1f} ms", f"{100 * time / asked.steps / step:.0f} %", f"{count / asked.steps:g}"]
        for key, time, count in own
    ]
    rest = step - sum(time for _, time, _ in own[: asked.rows]) / asked.steps
    table = [
        *rows[: asked.rows],
        ["all else", f"{rest:.1f} ms", f"{100 * rest / step:.0f} %", ""],
        ["a step", f"{step:.1f} ms", "", ""],
    ]
    title = f"{'One run' if asked.single else f'{len(GRID)} runs'}, {asked.steps} steps, {common.device_name(asked.device)}"
    common.show(title, ["operation", "own time a step", "share", "calls a step"], table, markdown=asked.markdown)


if __name__ == "__main__":
    main()
