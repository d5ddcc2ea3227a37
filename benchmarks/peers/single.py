"""What does one run cost? This project, plain sparsify, SAELens and dictionary_learning train the same SAE on the same batches.

    python benchmarks/peers/environments.py && python benchmarks/peers/single.py            about 40 minutes on two quiet CPU cores
    python benchmarks/peers/single.py --steps 4 --rounds 1 --rates 1e-2        whether it works, about 2 minutes

The demo's language model, layers.2, 2,048 latents, k = 32, batches of 4,096 tokens, Adam, float32. First each contender is run at each learning
rate, not timed, and keeps the one of the lowest held-out FVU; then the contenders take turns, and the median counts. The time is that from
the first batch to the last optimizer step, logging on, without imports, loading, evaluation and saving; the memory is the highest in that time. The
held-out FVU is measured by one function from each contender's final weights. Last comes how much of this project's time the bare parts
of a step take by themselves, each by the fastest kernel that is known here.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import common
from common import DICTIONARY_LEARNING, OURS, SAELENS, SPARSIFY, Bench, say
from contenders.meter import Coder
from peers import environments

K, LATENTS = 32, 2048
CONTENDERS = [OURS, SPARSIFY, SAELENS, DICTIONARY_LEARNING]


def choose(bench: Bench, names: Sequence[str], rates: Sequence[float]) -> dict[str, dict[float, float]]:
    """{contender: {rate: held-out FVU}}."""
    found: dict[str, dict[float, float]] = {name: {} for name in names}
    for name in names:
        for rate in rates:
            (found[name][rate],) = bench.run(name, [Coder(K, LATENTS, rate)])["fvu"]
            say(f"{name} at {rate:g}: held-out FVU {found[name][rate]:.4f}")
    return found


def bare(bench: Bench, weights_of: dict[str, Any], coders: Sequence[Coder]) -> dict[str, dict[str, float]]:
    """{part: {kernel: seconds a batch}} in a process of its own, with the weights that a contender has trained."""
    job = bench.job("bare", coders)
    job.weights = weights_of["weights"]
    command = [sys.executable, str(common.HERE / "contenders" / "bare.py"), str(job.write(Path(job.folder) / "job.json"))]
    return common.process(command, job.device)


def show_bare(rounds: Sequence[dict[str, dict[str, float]]], ours: Sequence[dict[str, Any]], steps: int, markdown: bool) -> None:
    """The table of the parts, and the share of this project's time that the fastest kernels take together."""
    total = 0.0
    rows = []
    for part in rounds[0]:
        medians = {kernel: statistics.median(r[part][kernel] for r in rounds) for kernel in rounds[0][part]}
        best = min(medians, key=medians.__getitem__)
        total += medians[best]
        others = ", ".join(f"{kernel} {1000 * value:.1f}" for kernel, value in medians.items() if kernel != best)
        rows.append([part, f"{1000 * medians[best]:.1f} ms", best, others])
    step = statistics.median(r["seconds"] for r in ours) / steps
    rows += [["together", f"{1000 * total:.1f} ms", "", ""], ["a step of this project", f"{1000 * step:.1f} ms", "", ""]]
    common.show("The bare parts of a step", ["part", "time", "fastest kernel", "others, ms"], rows, markdown=markdown)
    print(f"The bare parts are {100 * total / step:.0f} % of this project's time.")


def show(rounds: dict[str, list[dict[str, Any]]], rates: dict[str, float], title: str, markdown: bool) -> None:
    """The table of contenders."""
    medians = {n: {k: statistics.median(r[k] for r in rs) for k in ("seconds", "cpu_seconds", "peak")} for n, rs in rounds.items()}
    base = medians[OURS]
    rows = []
    for name, own in medians.items():
        tokens = statistics.median(r["tokens_per_s"] for r in rounds[name])
        times = [
            f"{own['seconds']:.1f} s",
            f"{own['seconds'] / base['seconds']:.2f}",
            f"{own['cpu_seconds']:.1f} s",
            f"{tokens:,.0f}",
        ]
        fvu = statistics.mean(rounds[name][0]["fvu"])
        memory = [f"{own['peak'] / 1e6:,.0f} MB", f"{own['peak'] / base['peak']:.2f}"]
        rows.append([name, *times, *memory, f"{rates[name]:g}", number(fvu)])
    headings = ["", "time", "of ours", "CPU time", "tokens/s x runs", "peak memory", "of ours", "rate", "held-out FVU"]
    common.show(title, headings, rows, markdown=markdown)
    every = {name: ", ".join(f"{r['seconds']:.1f}" for r in own) for name, own in rounds.items()}
    print("All times: " + "; ".join(f"{name} {times} s" for name, times in every.items()) + ".")


def number(fvu: float) -> str:
    """A held-out FVU for a table; one that was not measured is NaN."""
    return "not measured" if math.isnan(fvu) else f"{fvu:.4f}"


def check_fvu(found: dict[str, Any]) -> None:
    """That the common measure gives what this project's own evaluation gave; on a GPU that one computes in bfloat16, so there it is only shown."""
    own = [json.loads(path.read_text()) for path in sorted(Path(found["folder"]).rglob("eval.json"))]
    theirs = sorted(1 - values["eval_result_metrics"]["reconstruction_quality"]["explained_variance"] for values in own)
    apart = max(abs(a - b) for a, b in zip(theirs, sorted(found["fvu"]), strict=True))
    print(f"The common FVU and this project's own evaluation differ by at most {apart:.1g}.")
    if apart > 1e-5 and found["on_cpu"]:
        raise SystemExit("that is more than rounding: the figures above cannot be trusted")


def arguments(contenders: Sequence[str]) -> argparse.ArgumentParser:
    """What single.py and grid.py are told alike."""
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150, help="optimizer steps of 4,096 tokens (150)")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each contender (3)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--without", action="append", default=[], choices=contenders, help="leave a contender out")
    parser.add_argument("--peers", type=Path, default=environments.DEFAULT, help="folder of the peers' environments")
    parser.add_argument("--chosen", type=Path, default=common.RATES, help="JSON file of the chosen rates")
    parser.add_argument("--markdown", action="store_true", help="tables for a README")
    parser.add_argument("--json", type=Path, help="also write every measurement here")
    return parser


def main() -> None:
    parser = arguments([SPARSIFY, SAELENS, DICTIONARY_LEARNING])
    parser.description = __doc__
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2, 3e-2], help="Adam's peak rates to try")
    parser.add_argument("--keep-rates", action="store_true", help="take the rates that an earlier call chose; none are tried")
    asked = parser.parse_args()
    names = [name for name in CONTENDERS if name not in asked.without]
    for name in set(names) & set(environments.PEERS):
        environments.python(name, asked.peers)  # before anything is measured
    with tempfile.TemporaryDirectory() as folder:
        bench = common.prepare(Path(folder), asked.steps, asked.device, asked.peers)
        tried = {} if asked.keep_rates else choose(bench, names, asked.rates)
        rates = {name: min(own, key=own.__getitem__) for name, own in tried.items()}
        asked.chosen.parent.mkdir(parents=True, exist_ok=True)
        if asked.keep_rates:
            rates = json.loads(asked.chosen.read_text())["rates"]
        else:
            asked.chosen.write_text(json.dumps({"steps": asked.steps, "rates": rates}))
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        parts = []
        for turn in range(asked.rounds):
            for name in names:
                rounds[name].append(bench.run(name, [Coder(K, LATENTS, rates[name])]))
                say(f"round {turn + 1} of {asked.rounds}: {name} {rounds[name][-1]['seconds']:.1f} s")
            parts.append(bare(bench, rounds[OURS][-1], [Coder(K, LATENTS, rates[OURS])]))
        title = f"One run of {asked.steps} steps, {common.device_name(asked.device)}; median of {asked.rounds}"
        show(rounds, rates, title, asked.markdown)
        for name, own in tried.items():
            print(f"Held-out FVU of {name} by rate: " + ", ".join(f"{rate:g}: {fvu:.4f}" for rate, fvu in own.items()) + ".")
        check_fvu(rounds[OURS][-1] | {"on_cpu": asked.device == "cpu"})
        show_bare(parts, rounds[OURS], asked.steps, asked.markdown)
        if asked.json:
            asked.json.write_text(json.dumps({"tried": tried, "rates": rates, "rounds": rounds, "bare": parts}, indent=1))


if __name__ == "__main__":
    main()
