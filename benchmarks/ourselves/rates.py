"""Which learning rate a preset of conf/experiment does best at, tried on the demo model; and what trying several rates costs.

    python benchmarks/ourselves/rates.py                             about 15 minutes on two quiet CPU cores
    python benchmarks/ourselves/rates.py --only sae_basic

The demo model and text take the place of those that a preset names, layer 2 that of its layers; length, batches, k, expansion factor, optimizer and
schedule are the preset's but where SHORTENED says otherwise. All rates of a preset train in one pack, on one forward; of the demo the time of that
and of one run is told, held-out evaluation included.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import common
from common import say
from sae_transcoder.api import Run, sweep

# The modules of the demo model in place of the preset's.
PRESETS = {
    "demo": [],
    "demo model_type=transcoder": [],
    "sae_basic": ["layers=[2]"],
    "transcoder_layers": ["layers=[2]"],
    "custom_hookpoints": ["hookpoints=[layers.2.self_attn,layers.2.mlp.act_fn]"],
    "advanced_full": ["layers=[2]"],
}
# What would take hours here: fewer tokens, the schedule shortened to match, and fewer latents.
SHORTENED = {
    "custom_hookpoints": ["expansion_factor=4"],
    "advanced_full": ["max_samples=8000", "k_decay_steps=100", "lr_warmup_steps=20", "eval_samples=128"],
}


def trained(preset: str, rates: Sequence[str], folder: str) -> tuple[list[Run], float]:
    """The runs of a preset at these rates, and the seconds that they took."""
    name, *own = preset.split()
    demo = [] if name == "demo" else ["model=demo", "dataset=demo"]
    settings = [f"experiment={name}", *demo, *own, *PRESETS[preset], *SHORTENED.get(preset, [])]
    start = time.perf_counter()
    label = f"{preset}_{len(rates)}".replace(" ", "_").replace("=", "_")
    runs = sweep(*settings, f"lr={','.join(rates)}", f"save_dir={folder}", f"sweep_name={label}", "device=cpu", "save_best=false")
    return runs, time.perf_counter() - start


def fvu(run: Run) -> float:
    return float(np.mean([coder.metrics["fvu"] for coder in run.evaluation.coders]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", default="3e-3,1e-2,3e-2,1e-1", help="comma-separated (3e-3,1e-2,3e-2,1e-1)")
    parser.add_argument("--only", action="append", choices=list(PRESETS), help="only this preset")
    parser.add_argument("--markdown", action="store_true", help="tables for a README")
    asked = parser.parse_args()
    rates = asked.rates.split(",")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for preset in asked.only or PRESETS:
            if preset == "demo":
                trained(preset, rates[:1], f"{folder}/first")  # tokenises
            found, seconds = trained(preset, rates, folder)
            rows.append([preset, *(f"{fvu(run):.4f}" for run in found)])
            say(" ".join(rows[-1]))
            if preset == "demo":
                _, alone = trained(preset, rates[:1], f"{folder}/alone")
                say(
                    f"one run of it {alone:.0f} s, all {len(rates)} in one pack {seconds:.0f} s, {seconds / alone:.2f} times as long"
                )
    common.show("Held-out FVU by rate", ["experiment", *(f"lr={rate}" for rate in rates)], rows, markdown=asked.markdown)


if __name__ == "__main__":
    main()
