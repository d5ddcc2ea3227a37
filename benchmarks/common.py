"""What benchmarks share: the tokens, the contenders' processes, the common measure of held-out FVU, steps timed in turn, and tables."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from contenders.meter import ARRAYS, THRESHOLD, Coder, Job
from peers import environments
from sae_transcoder.config import Config
from sae_transcoder.config.composer import composed
from sae_transcoder.language_model import forward, loading
from sae_transcoder.preflight.plan import make_plan
from sae_transcoder.process import host_memory

HERE = Path(__file__).parent
HOOKPOINT, LENGTH, BATCH = "layers.2", 256, 16  # tokens a sequence, sequences a step
OURS, SPARSIFY, SAELENS, DICTIONARY_LEARNING = "ours", "sparsify", "saelens", "dictionary_learning"
SCRIPTS = {
    OURS: "contenders/ours.py",
    SPARSIFY: "contenders/peer_sparsify.py",
    SAELENS: "contenders/peer_saelens.py",
    DICTIONARY_LEARNING: "contenders/peer_dictionary_learning.py",
}
RATES = environments.DEFAULT / "rates.json"  # what single.py chose


@dataclass
class Bench:
    """The data that all contenders share, in a temporary folder."""

    folder: Path
    steps: int
    device: str
    peers: Path  # folder of the peers' environments
    cfg: Config
    width: int
    heldout: Tensor  # the hookpoint's output on the held-out tokens, float32 [token, d]

    def job(self, name: str, coders: Sequence[Coder]) -> Job:
        """A contender's job, with a folder of its own."""
        own = tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder)
        return Job(
            model=str(loading.DEMO),
            hookpoint=HOOKPOINT,
            width=self.width,
            tokens=str(self.folder / "tokens.npy"),
            batch=BATCH,
            steps=self.steps,
            warmup=max(1, self.steps // 20),
            coders=list(coders),
            weights=f"{own}/weights.npz",
            folder=own,
            device=self.device,
            dtype="bfloat16" if self.device.startswith("cuda") else "float32",
        )

    def run(self, name: str, coders: Sequence[Coder]) -> dict[str, Any]:
        """Has a contender train in a process of its own: {seconds, cpu_seconds, peak, tokens_per_s, and of each coder fvu, l0, fvu_at_k}."""
        job = self.job(name, coders)
        own_python = sys.executable if name in (OURS, SPARSIFY) else str(environments.python(name, self.peers))
        found = process([own_python, str(HERE / SCRIPTS[name]), str(job.write(Path(job.folder) / "job.json"))], job.device)
        of_coders = [measured(job.weights, i, coder.k, self.heldout) for i, coder in enumerate(coders)]
        found |= {name: [own[name] for own in of_coders] for name in of_coders[0]}
        found["folder"] = job.folder
        return found


def asked_or_measured(parser: argparse.ArgumentParser, measure: Callable[[Path], None]) -> argparse.Namespace:
    """The arguments of a script that starts itself for each measurement; in the process so started, measures and ends."""
    parser.add_argument("--markdown", action="store_true", help="tables for a README")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.measure)
        sys.exit(0)
    return asked


def process(command: list[str], device: str) -> dict[str, Any]:
    """The last JSON line that a process prints; ends the program with its error where it fails."""
    environment = os.environ | {"SPARSIFY_DISABLE_TRITON": "0" if device.startswith("cuda") else "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(
            f"{Path(command[1]).name} failed (a comparison goes without it by --without NAME):\n{done.stderr[-4000:]}{done.stdout[-500:]}"
        )
    # wandb says a few words more at its end.
    return json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])


def prepare(folder: Path, steps: int, device: str, peers_folder: Path) -> Bench:
    """Tokenises once, by this project, into tokens.npy, and computes the held-out activations."""
    settings = ["experiment=demo", f"device={device}", f"batch_size={BATCH}", f"max_steps={steps}", "max_samples=null"]
    cfg = composed([*settings, f"max_seq_length={LENGTH}", "layers=null", f"hookpoints=[{HOOKPOINT}]", f"save_dir={folder}/none"])
    plan = make_plan(cfg)
    np.save(folder / "tokens.npy", plan.tokens.train[: plan.length.samples])
    model = loading.load(cfg, plan.device)
    pieces = []
    for start in range(0, len(plan.tokens.heldout), BATCH):
        tokens = torch.from_numpy(plan.tokens.heldout[start : start + BATCH]).to(plan.device)
        pieces.append(forward.capture(model, [HOOKPOINT], tokens)[HOOKPOINT].output.flatten(0, 1).float())
    return Bench(folder, steps, device, peers_folder, cfg, plan.widths[HOOKPOINT], torch.cat(pieces))


@torch.no_grad()
def measured(weights: str | Path, index: int, k: int, heldout: Tensor) -> dict[str, float]:
    """{fvu, l0, fvu_at_k} of a coder on `heldout` [token, d], the same for everyone.

    Latents fire whose ReLU(encoder (x - shift) + encoder_bias) is among the k largest of a token, or above the coder's threshold where it has
    one; times the decoder's rows, plus decoder_bias, they reconstruct x. fvu: the fraction of the variance about the mean that is left
    unexplained; l0: latents that fire for a token; fvu_at_k: with the one threshold by which k fire for a held-out token, in place of the
    coder's.
    """
    with np.load(weights) as kept:
        arrays = {
            n: torch.from_numpy(kept[f"{index}/{n}"]).to(heldout.device) for n in (*ARRAYS, THRESHOLD) if f"{index}/{n}" in kept
        }
    exact = heldout.double()
    variance = (exact - exact.mean(0)).pow(2).sum().item()

    def preacts(x: Tensor) -> Tensor:
        return ((x - arrays["shift"]) @ arrays["encoder"].T + arrays["encoder_bias"]).relu()

    def unexplained(threshold: Tensor | None) -> tuple[float, float]:
        error, active = 0.0, 0
        for x in heldout.split(4096):
            acts = preacts(x)
            cut = acts.topk(k).values[:, -1:] if threshold is None else threshold
            acts = acts.where(acts >= cut if threshold is None else acts > cut, 0)
            active += int((acts > 0).sum())
            error += (x - acts @ arrays["decoder"] - arrays["decoder_bias"]).double().pow(2).sum().item()
        return error / variance, active / len(heldout)

    fvu, l0 = unexplained(arrays.get(THRESHOLD))
    if THRESHOLD not in arrays:
        return {"fvu": fvu, "l0": l0, "fvu_at_k": fvu}
    # The 4k largest for each token of a piece hold the k largest for each token of all, unless the piece is very unlike the others.
    largest = [preacts(x).flatten().topk(min(4 * k, len(arrays["encoder"])) * len(x)).values for x in heldout.split(4096)]
    cut = torch.cat(largest).topk(k * len(heldout) + 1).values[-1]
    return {"fvu": fvu, "l0": l0, "fvu_at_k": unexplained(cut)[0]}


def prepare_device(device: torch.device) -> None:
    """Sets what training sets (process/device_settings.py)."""
    torch.set_float32_matmul_precision("high")
    if device.type == "cpu":
        host_memory.keep_freed()


def medians_in_turn(actions: Mapping[Any, Callable[[], None]], rounds: int, untimed: int) -> dict[Any, list[float]]:
    """Calls all actions {name: function} in turn, first in `untimed` rounds: {name: [median of seconds, of the processors' seconds]}."""
    clocks = (time.perf_counter, time.process_time)
    times: dict[Any, list[list[float]]] = {name: [[] for _ in clocks] for name in actions}
    for i in range(rounds + untimed):
        for name, action in actions.items():
            before = [clock() for clock in clocks]
            action()
            for own, clock, start in zip(times[name], clocks, before, strict=True):
                own.append(clock() - start)
        say(f"round {i + 1}")
    return {name: [median(own[untimed:]) for own in each] for name, each in times.items()}


def device_name(device: str) -> str:
    """What computes, for titles."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else f"CPU, {torch.get_num_threads()} threads"


def show(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], *, markdown: bool = False) -> None:
    """Prints a table; as Markdown for a README."""
    if markdown:
        print("\n".join([f"\n{title}\n", f"| {' | '.join(headings)} |", f"|{' --- |' * len(headings)}"]))
        print("\n".join(f"| {' | '.join(row)} |" for row in rows))
        return
    table = Table(*headings, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    # Without a terminal a table is as wide as it needs to be.
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)
