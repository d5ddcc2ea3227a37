"""What does a grid of 8 runs cost? k of 8, 16, 32, 64 x expansion 4, 8: ours as one pack, sparsify 8 times, SAELens, dictionary_learning.

    python benchmarks/peers/grid.py                       after single.py, which chooses the rates; about 80 minutes on two quiet CPU cores
    python benchmarks/peers/grid.py --with-alone          and this project's 8 runs one after the other, another 15 minutes
    python benchmarks/peers/grid.py --steps 4 --rounds 1 --extrapolate 3     whether it works, about 6 minutes

Model, hookpoint, batches, what is timed and how FVU and memory are measured: as in single.py. sparsify's Trainer trains one width and k at a
time: its 8 runs are added up, of memory the highest counts. SAELens trains its 8 by MultiSAETrainingRunner and dictionary_learning its 8 trainers
on one forward each. Whether a run of the pack ends exactly as it does alone is checked with --with-alone.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import common
from common import DICTIONARY_LEARNING, OURS, SAELENS, SPARSIFY, Bench, say
from contenders.meter import Coder
from peers import environments, single

GRID = [(k, expansion) for k in (8, 16, 32, 64) for expansion in (4, 8)]
ALONE = "ours, 8 times alone"
ORDER = [OURS, ALONE, SPARSIFY, SAELENS, DICTIONARY_LEARNING]


def coders(bench: Bench, rate: float) -> list[Coder]:
    """The 8 runs, at the rate that single.py chose for the contender."""
    return [Coder(k, expansion * bench.width, rate) for k, expansion in GRID]


def one_by_one(bench: Bench, name: str, runs: list[Coder]) -> dict[str, Any]:
    """The runs one after the other, each in a process of its own: times added up, the highest memory."""
    found = [bench.run(name, [run]) for run in runs]
    total = {key: sum(f[key] for f in found) for key in ("seconds", "cpu_seconds")}
    tokens = sum(f["tokens_per_s"] * f["seconds"] for f in found)
    rest = {"peak": max(f["peak"] for f in found), "fvu": [f["fvu"][0] for f in found], "tokens_per_s": tokens / total["seconds"]}
    return total | rest


def extrapolated(found: dict[str, Any], steps: int, short: int) -> dict[str, Any]:
    """Times of shorter runs scaled to `steps`; their FVU is not that of whole runs, and left out."""
    scaled = {key: found[key] * steps / short for key in ("seconds", "cpu_seconds")}
    return found | scaled | {"fvu": [float("nan")] * len(found["fvu"])}


def turn(bench: Bench, short: Bench | None, name: str, rate: float) -> dict[str, Any]:
    """One measurement of a contender."""
    runs = coders(bench, rate)
    if name == ALONE:
        return one_by_one(bench, OURS, runs)
    if name == SPARSIFY:
        return extrapolated(one_by_one(short, name, runs), bench.steps, short.steps) if short else one_by_one(bench, name, runs)
    return bench.run(name, runs)


def main() -> None:
    parser = single.arguments([SPARSIFY, SAELENS, DICTIONARY_LEARNING])
    parser.description = __doc__
    parser.add_argument("--with-alone", action="store_true", help="also this project's 8 runs one after the other")
    parser.add_argument("--extrapolate", type=int, metavar="STEPS", help="run sparsify for fewer steps and scale its time")
    asked = parser.parse_args()
    if not asked.chosen.exists():
        raise SystemExit(f"{asked.chosen}: no rates; run python benchmarks/peers/single.py first")
    chosen = json.loads(asked.chosen.read_text())
    rates = chosen["rates"] | {ALONE: chosen["rates"][OURS]}
    left_out = set(asked.without) | (set() if asked.with_alone else {ALONE})
    names = [name for name in ORDER if name not in left_out]
    if lacking := [name for name in names if name not in rates]:
        raise SystemExit(f"{asked.chosen}: no rate of {', '.join(lacking)}; run single.py with it, or leave it out by --without")
    for name in set(names) & set(environments.PEERS):
        environments.python(name, asked.peers)
    if chosen["steps"] != asked.steps:
        print(f"The rates were chosen in runs of {chosen['steps']} steps, not {asked.steps}.")
    with tempfile.TemporaryDirectory() as folder:
        bench = common.prepare(Path(folder), asked.steps, asked.device, asked.peers)
        short = None
        if asked.extrapolate:
            (Path(folder) / "short").mkdir()
            short = common.prepare(Path(folder) / "short", asked.extrapolate, asked.device, asked.peers)
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        parts = []
        for number in range(asked.rounds):
            for name in names:
                rounds[name].append(turn(bench, short, name, rates[name]))
                say(f"round {number + 1} of {asked.rounds}: {name} {rounds[name][-1]['seconds']:.1f} s")
            parts.append(single.bare(bench, rounds[OURS][-1], coders(bench, rates[OURS])))
        title = f"{len(GRID)} runs of {asked.steps} steps, {common.device_name(asked.device)}; median of {asked.rounds}"
        single.show(rounds, rates, title, asked.markdown)
        if short:
            print(
                f"sparsify's time is that of runs of {asked.extrapolate} steps, times {asked.steps / asked.extrapolate:g}; it has no FVU."
            )
        show_fvu(rounds, asked.markdown)
        single.check_fvu(rounds[OURS][-1] | {"on_cpu": asked.device == "cpu"})
        if ALONE in rounds:
            apart = max(abs(a - b) for a, b in zip(rounds[OURS][0]["fvu"], rounds[ALONE][0]["fvu"], strict=True))
            print(f"The FVU of a run of the pack and of the run alone differ by at most {apart:.1g}.")
            if asked.device == "cpu" and apart:
                raise SystemExit("on a CPU they must be equal")
        single.show_bare(parts, rounds[OURS], asked.steps, asked.markdown)
        if asked.json:
            asked.json.write_text(json.dumps({"rates": rates, "rounds": rounds, "bare": parts}, indent=1))


def show_fvu(rounds: dict[str, list[dict[str, Any]]], markdown: bool) -> None:
    """Held-out FVU of every run, each the median of the rounds."""
    rows = []
    for name, own in rounds.items():
        values = [statistics.median(r["fvu"][i] for r in own) for i in range(len(GRID))]
        rows.append([name, *map(single.number, values)])
    common.show("Held-out FVU", ["", *(f"k {k}, x{expansion}" for k, expansion in GRID)], rows, markdown=markdown)


if __name__ == "__main__":
    main()
