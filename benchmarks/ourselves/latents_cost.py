"""What does it cost to describe latents? The time of `sae-latents` beside that of the bare forward over the same text, and its memory.

    python benchmarks/ourselves/latents_cost.py [--tokens 100_000 1_000_000] [--rounds 3] [--markdown]

A coder on layers.2 of the demo model (2,048 latents, k = 32) is trained for 20 steps. Then, in processes of their own and in turn: the pass, and
the forward up to layers.2 alone, in batches of the same size. The time of a pass is that of all it does once the model is loaded, tables
included. Peak memory is the process's.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from common import device_name, say, show
from sae_transcoder.api import load_config, train
from sae_transcoder.config import run_dir
from sae_transcoder.language_model import layers
from sae_transcoder.language_model.forward import capture
from sae_transcoder.latents import one_pass
from sae_transcoder.latents.batch import read_batch
from sae_transcoder.latents.request import LatentsRequest, latents_requests, split_arguments
from sae_transcoder.process import device_settings
from sae_transcoder.run_store import latents_pass


def bare(request: LatentsRequest) -> float:
    """Seconds of the forward over the text, up to the coder's module."""
    cfg, device = request.cfg, torch.device("cpu")
    with device_settings.configured(cfg, device):
        sequences = one_pass.text_to_read([request], 2**20)
        model = layers.load_for_hookpoints(one_pass.replace_logits(cfg, False), device, 3, ["layers.2"])
        step = one_pass.POSITIONS["cpu"] // cfg.max_seq_length
        began = time.perf_counter()
        for start in range(0, len(sequences), step):
            batch = read_batch(sequences, start, min(len(sequences), start + step), device)
            capture(model, ["layers.2"], batch.tokens)
        return time.perf_counter() - began


def whole(request: LatentsRequest) -> float:
    """Seconds of the pass and of its tables, without what comes before the first batch."""
    read_text, began = one_pass.read_text, [0.0]

    def noted(*arguments: object) -> None:
        began[0] = time.perf_counter()
        read_text(*arguments)

    one_pass.read_text = noted
    one_pass.describe_latents([request])
    return time.perf_counter() - began[0]


def measure(kind: str, run: str, tokens: int) -> None:
    """Prints seconds and peak memory of one process."""
    paths, wanted, _ = split_arguments([run, f"tokens={tokens}"])
    (request,) = latents_requests(paths, wanted, [], None, print)
    seconds = (bare if kind == "bare" else whole)(request)
    print(json.dumps({"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=lambda text: int(text.replace("_", "")), nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=3, help="of each, medians (3)")
    parser.add_argument("--markdown", action="store_true", help="a table for a README")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.measure[0], asked.measure[1], int(asked.measure[2]))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        settings = ["max_steps=20", "max_samples=null", "max_seq_length=256", "eval_end_to_end=false", "k=32"]
        run = run_dir(train(load_config("experiment=demo", *settings, f"save_dir={folder}", "run_name=run")).config)
        for tokens in asked.tokens:
            found: dict[str, list[dict[str, float]]] = {"bare": [], "pass": []}
            for number in range(asked.rounds):
                for kind, own in found.items():
                    shutil.rmtree(run / latents_pass.FOLDER, ignore_errors=True)
                    command = [sys.executable, __file__, "--measure", kind, str(run), str(tokens)]
                    own.append(
                        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
                    )
                    say(
                        f"round {number + 1}, {tokens:,} tokens, {kind}: {own[-1]['seconds']:.1f} s, {own[-1]['peak'] / 1e6:,.0f} MB"
                    )
            seconds = {kind: statistics.median(each["seconds"] for each in own) for kind, own in found.items()}
            peak = {kind: statistics.median(each["peak"] for each in own) for kind, own in found.items()}
            ratio = f"{seconds['pass'] / seconds['bare']:.2f}"
            rows.append(
                [
                    f"{tokens:,}",
                    f"{seconds['bare']:.1f} s",
                    f"{seconds['pass']:.1f} s",
                    ratio,
                    *(f"{peak[k] / 1e6:,.0f} MB" for k in found),
                ]
            )
    headings = ["tokens", "bare forward", "sae-latents", "of the forward", "peak memory, forward", "peak memory, sae-latents"]
    show(f"2,048 latents, k = 32, {device_name('cpu')}", headings, rows, markdown=asked.markdown)


if __name__ == "__main__":
    main()
