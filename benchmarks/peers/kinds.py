"""Which coder is best at equal L0, and what does it cost? BatchTopK and Matryoshka of this project, SAELens and dictionary_learning, beside TopK.

    python benchmarks/peers/environments.py && python benchmarks/peers/kinds.py                  about 2 hours on two quiet CPU cores
    python benchmarks/peers/kinds.py --without-times                                             the first table, about an hour
    python benchmarks/peers/kinds.py --steps 20 --rounds 1 --rates 1e-2 --without-pack           whether it works, about 5 minutes

Model, hookpoint, tokens, batches, steps, 2,048 latents and k = 32 as in single.py. Each contender is run at each rate, not timed, and keeps the one
of the lowest held-out FVU. The first table has the FVU of latents that fire as the published coder says (batchtopk and Matryoshka: above its
threshold), how many fire for a held-out token (L0), and the FVU at the threshold by which exactly k do. The second has the times of one run and
of 8 (k 8, 16, 32, 64 x expansion 4, 8) on one forward, by each program's own means, contenders in turns, medians. Matryoshka's nested
dictionaries have 1/32, 1/8, 1/2 and all of the latents.
"""

import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import common
from common import DICTIONARY_LEARNING, OURS, SAELENS, SPARSIFY, Bench, say
from contenders.meter import Coder
from peers import environments, grid, single

LEVELS = (32, 8, 2, 1)  # all latents over those of each nested dictionary
CHOSEN = environments.DEFAULT / "kinds.json"  # the rates, kept for another call


@dataclass(frozen=True)
class Contender:
    """A program and the coder that it trains."""

    program: str
    kind: str  # topk, batchtopk or matryoshka

    def __str__(self) -> str:
        return f"{self.program}, {self.kind}"

    def coder(self, k: int, latents: int, rate: float) -> Coder:
        """The coder at a rate."""
        widths = [latents // part for part in LEVELS] if self.kind == "matryoshka" else None
        return Coder(k, latents, rate, "topk" if self.kind == "topk" else "batchtopk", widths)

    def run(self, bench: Bench, rate: float) -> dict[str, Any]:
        """One run of single.py's shape."""
        return bench.run(self.program, [self.coder(single.K, single.LATENTS, rate)])

    def pack(self, bench: Bench, rate: float) -> dict[str, Any]:
        """grid.py's 8 runs."""
        return bench.run(self.program, [self.coder(k, expansion * bench.width, rate) for k, expansion in grid.GRID])


CONTENDERS = [
    Contender(OURS, "topk"),
    *(Contender(program, kind) for kind in ("batchtopk", "matryoshka") for program in (OURS, SAELENS, DICTIONARY_LEARNING)),
]


def tried(bench: Bench, contender: Contender, rates: list[float]) -> dict[float, dict[str, float]]:
    """{rate: {fvu, l0, fvu_at_k}}."""
    found = {}
    for rate in rates:
        run = contender.run(bench, rate)
        found[rate] = {name: run[name][0] for name in ("fvu", "l0", "fvu_at_k")}
        if contender.program == OURS:
            single.check_fvu(run | {"on_cpu": bench.device == "cpu"})
        say(f"{contender} at {rate:g}: held-out FVU {found[rate]['fvu']:.4f}, L0 {found[rate]['l0']:.2f}")
    return found


def best(by_rate: dict[float, dict[str, float]]) -> float:
    """The rate of the lowest held-out FVU."""
    return min(by_rate, key=lambda rate: by_rate[rate]["fvu"])


def show_fvu(found: dict[Contender, dict[float, dict[str, float]]], title: str, markdown: bool) -> None:
    """The table of what was trained."""
    of_ours = {c.kind: found[c][best(found[c])] for c in found if c.program == OURS}
    rows = []
    for contender, by_rate in found.items():
        rate = best(by_rate)
        own = by_rate[rate]
        to_ours = f"{own['fvu_at_k'] / of_ours[contender.kind]['fvu_at_k']:.3f}" if contender.kind in of_ours else ""
        every = ", ".join(f"{r:g}: {values['fvu']:.4f}" for r, values in by_rate.items())
        rows.append(
            [str(contender), f"{rate:g}", f"{own['fvu']:.4f}", f"{own['l0']:.2f}", f"{own['fvu_at_k']:.4f}", to_ours, every]
        )
    headings = ["", "rate", "held-out FVU", f"L0 (k = {single.K})", "FVU at L0 = k", "of ours", "FVU by rate"]
    common.show(title, headings, rows, markdown=markdown)


def timed(bench: Bench, rates: dict[Contender, float], rounds: int, *, pack: bool) -> dict[Contender, list[dict[str, Any]]]:
    """The contenders in turns."""
    found: dict[Contender, list[dict[str, Any]]] = {contender: [] for contender in rates}
    for i in range(rounds):
        for contender, rate in rates.items():
            found[contender].append((contender.pack if pack else contender.run)(bench, rate))
            say(f"round {i + 1} of {rounds}: {contender}, {8 if pack else 1}: {found[contender][-1]['seconds']:.1f} s")
    return found


def show_times(found: dict[Contender, list[dict[str, Any]]], title: str, markdown: bool) -> None:
    """The table of times, each beside that of ours of the same kind."""
    medians = {contender: statistics.median(run["seconds"] for run in own) for contender, own in found.items()}
    rows = []
    for contender, own in found.items():
        base = medians.get(Contender(OURS, contender.kind))
        every = ", ".join(f"{run['seconds']:.1f}" for run in own)
        memory = statistics.median(run["peak"] for run in own)
        rows.append(
            [
                str(contender),
                f"{medians[contender]:.1f} s",
                f"{medians[contender] / base:.2f}" if base else "",
                f"{memory / 1e6:,.0f} MB",
                every,
            ]
        )
    common.show(title, ["", "time", "of ours", "peak memory", "all times, s"], rows, markdown=markdown)


def main() -> None:
    parser = single.arguments([SAELENS, DICTIONARY_LEARNING])
    parser.description = __doc__
    parser.set_defaults(chosen=CHOSEN)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2, 3e-2], help="Adam's peak rates to try")
    parser.add_argument("--keep-rates", action="store_true", help="take the rates that an earlier call chose; none are tried")
    parser.add_argument("--without-times", action="store_true", help="the first table only")
    parser.add_argument("--without-pack", action="store_true", help="no packs of 8")
    asked = parser.parse_args()
    contenders = [contender for contender in CONTENDERS if contender.program not in asked.without]
    for program in {contender.program for contender in contenders} - {OURS, SPARSIFY}:
        environments.python(program, asked.peers)  # before anything is measured
    kept: dict[str, Any] = {"steps": asked.steps}
    with tempfile.TemporaryDirectory() as folder:
        bench = common.prepare(Path(folder), asked.steps, asked.device, asked.peers)
        title = f"{asked.steps} steps, {common.device_name(asked.device)}"
        if asked.keep_rates:
            chosen = json.loads(asked.chosen.read_text())
            rates = {contender: chosen[str(contender)] for contender in contenders}
        else:
            found = {contender: tried(bench, contender, asked.rates) for contender in contenders}
            rates = {contender: best(by_rate) for contender, by_rate in found.items()}
            asked.chosen.parent.mkdir(parents=True, exist_ok=True)
            asked.chosen.write_text(json.dumps({str(contender): rate for contender, rate in rates.items()}))
            kept["tried"] = {str(contender): by_rate for contender, by_rate in found.items()}
            show_fvu(found, title, asked.markdown)
        for pack in () if asked.without_times else (False,) if asked.without_pack else (False, True):
            times = timed(bench, rates, asked.rounds, pack=pack)
            kept["8 runs" if pack else "one run"] = {str(contender): own for contender, own in times.items()}
            show_times(times, f"{'8 runs' if pack else 'One run'} of {title}; median of {asked.rounds}", asked.markdown)
        if asked.json:
            asked.json.write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
