"""How do time and memory of this project grow? Runs a pack, expansion, depth of the hookpoint, layers at once, tokens a batch, steps.

    python benchmarks/ourselves/scaling.py                           about 20 minutes on two quiet CPU cores; writes benchmarks/ourselves/scaling.png
    python benchmarks/ourselves/scaling.py --steps 2 --points 2 --picture /tmp/scaling.png        whether it works, about 2 minutes

The demo's SAE (layers.2, k = 32, expansion 8, batches of 16 sequences of 256 tokens), one setting changed at a time; each measurement is a
process of its own. Time and memory are those from the first batch to the last optimizer step. A pack's runs differ in their seed. The table
says from where on a pack of twice the runs no longer pays; the last series shows whether memory grows with the steps.
"""

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import common
from common import say

GAIN = 0.05  # a pack of twice the runs pays while it saves this share of the time of a run


@dataclass(frozen=True)
class Point:
    """One measurement: what is shown for it, the runs' overrides, and steps where they are not the usual ones."""

    label: str
    runs: list[list[str]]
    steps: int | None = None


@dataclass(frozen=True)
class Found:
    """What was measured: seconds from the first batch to the last step, peak memory in bytes."""

    point: Point
    steps: int
    seconds: float
    peak: int

    @property
    def per_run(self) -> float:
        """Seconds of a step of one run."""
        return self.seconds / self.steps / len(self.point.runs)


def series(device: str) -> dict[str, list[Point]]:
    """{what grows: its points}."""
    layers = range(6)
    packs = (1, 2, 4, 8, 16, 32)
    return {
        "runs a pack": [Point(str(n), [[f"init_seeds=[{seed}]"] for seed in range(n)]) for n in packs],
        "expansion": [Point(str(n), [[f"expansion_factor={n}"]]) for n in (4, 8, 16, 32, 64)],
        "layer": [Point(str(n), [[f"layers=[{n}]"]]) for n in layers],
        "layers at once": [Point(str(n + 1), [[f"layers={[*range(n + 1)]}".replace(" ", "")]]) for n in layers],
        "tokens a batch": [Point(f"{256 * n:,}", [[f"batch_size={n}"]]) for n in (2, 4, 8, 16, 32, 64)],
        "steps": [Point(str(n), [["batch_size=4"]], n) for n in (10, 50, 250, 750)],
    }


def measure(spec: Path) -> None:
    """In a process of its own: trains the runs of the file and prints a line of results."""
    from contenders.meter import Meter
    from contenders.ours import timed
    from sae_transcoder.config.composer import composed
    from sae_transcoder.preflight.plan import make_plan
    from sae_transcoder.training import engine

    asked = json.loads(spec.read_text())
    base = ["experiment=demo", f"device={asked['device']}", "batch_size=16", f"max_steps={asked['steps']}", "max_samples=null"]
    base += ["exclude_first_tokens=0", "eval_end_to_end=false", "save_best=false", "eval_samples=2", f"save_every={asked['steps']}"]
    cfgs = [composed([*base, f"save_dir={spec.parent}/{i}", *run]) for i, run in enumerate(asked["runs"])]
    make_plan(cfgs[0])
    meter = Meter(asked["device"])
    with timed(meter):
        engine.train(cfgs)
    print("\n" + json.dumps(meter.found()))


def run(point: Point, steps: int, device: str) -> Found:
    """Measures a point in a process of its own."""
    steps = point.steps or steps
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "spec.json"
        spec.write_text(json.dumps({"runs": point.runs, "steps": steps, "device": device}))
        found = common.process([sys.executable, __file__, "--measure", str(spec)], device)
    return Found(point, steps, found["seconds"], int(found["peak"]))


def pays(packs: Sequence[Found]) -> str:
    """Where a larger pack saves nothing more."""
    alone = packs[0]
    best = min(packs, key=lambda f: f.per_run)
    text = (
        f"A run in a pack of {best.point.label} takes {best.per_run / alone.per_run:.2f} of its time alone, the least of all packs."
    )
    for small, large in itertools.pairwise(packs):
        if large.per_run > (1 - GAIN) * small.per_run:
            return f"{text} From {small.point.label} runs on, twice as many save less than {100 * GAIN:.0f} % of a run's time."
    return f"{text} Twice as many runs save at least {100 * GAIN:.0f} % of a run's time as far as was measured."


def picture(found: dict[str, list[Found]], path: Path, title: str) -> None:
    """Time per step and run, and memory, over each series."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(found), figsize=(3 * len(found), 5.5), layout="constrained", squeeze=False)
    for column, (name, own) in enumerate(found.items()):
        labels = [f.point.label for f in own]
        axes[0][column].plot(labels, [1000 * f.per_run for f in own], marker="o", color="tab:blue")
        axes[1][column].plot(labels, [f.peak / 1e6 for f in own], marker="o", color="tab:orange")
        axes[1][column].set_xlabel(name)
        for row in axes:
            row[column].set_ylim(0, 1.1 * row[column].get_ylim()[1])
            row[column].tick_params(axis="x", labelrotation=45)
    axes[0][0].set_ylabel("ms a step and run")
    axes[1][0].set_ylabel("peak memory, MB")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of each measurement (20)")
    parser.add_argument("--points", type=int, help="only so many points of each series")
    parser.add_argument("--only", action="append", choices=list(series("cpu")), help="only this series")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--picture", type=Path, default=common.HERE / "ourselves" / "scaling.png", help="where the picture goes")
    asked = common.asked_or_measured(parser, measure)
    found: dict[str, list[Found]] = {}
    for name, points in series(asked.device).items():
        if asked.only and name not in asked.only:
            continue
        for point in points[: asked.points]:
            found.setdefault(name, []).append(run(point, asked.steps, asked.device))
            say(f"{name} {point.label}: {found[name][-1].seconds:.1f} s")
    title = f"The demo's SAE, {asked.steps} steps, {common.device_name(asked.device)}"
    rows = [
        [name, f.point.label, f"{1000 * f.per_run:.0f} ms", f"{f.per_run / own[0].per_run:.2f}", f"{f.peak / 1e6:,.0f} MB"]
        for name, own in found.items()
        for f in own
    ]
    headings = ["what grows", "to", "a step and run", "of the first", "peak memory"]
    common.show(title, headings, rows, markdown=asked.markdown)
    if len(found.get("runs a pack", [])) > 1:
        print(pays(found["runs a pack"]))
    if len(own := found.get("steps", [])) > 1:
        first, last = own[min(1, len(own) - 2)], own[-1]  # not the shortest, in which memory is still being found
        print(f"Peak memory in {last.steps} steps is {last.peak / first.peak:.2f} of that in {first.steps}.")
    picture(found, asked.picture, title)
    print(f"Picture: {asked.picture}")


if __name__ == "__main__":
    main()
