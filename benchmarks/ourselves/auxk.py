"""Does the AuxK correction matter? Dead fraction and held-out FVU on the demo model with and without it, three seeds each.

    python benchmarks/ourselves/auxk.py [steps]          one forward trains all runs; prints a Markdown table

Four kinds of run, equal but for what is named: no AuxK; AuxK as in eai-sparsify 1.3.3, whose gradient never reaches the encoder
(`corrections=false`); AuxK corrected, at sparsify's usual weight and at eight times that weight.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

from sae_transcoder.config import Config, run_dir
from sae_transcoder.config.composer import composed
from sae_transcoder.training.engine import train

KINDS = {
    "no AuxK": ["auxk_alpha=0"],
    "AuxK of sparsify 1.3.3 (alpha 1/32)": ["auxk_alpha=0.03125", "corrections=false"],
    "AuxK corrected (alpha 1/32)": ["auxk_alpha=0.03125"],
    "AuxK corrected (alpha 1/4)": ["auxk_alpha=0.25"],
}
SEEDS = (0, 1, 2)


def configs(folder: str, steps: int) -> dict[str, list[Config]]:
    """A run for each kind and seed: a transcoder with many latents and a high rate, so that latents do die."""
    base = ["experiment=demo", "model_type=transcoder", "lr=3e-2", f"max_steps={steps}", "max_samples=null", "expansion_factor=8"]
    base += ["dead_feature_threshold=50000", "save_best=false", f"save_dir={folder}"]
    return {kind: [composed([*base, *settings, f"init_seeds=[{seed}]"]) for seed in SEEDS] for kind, settings in KINDS.items()}


def main(steps: int) -> None:
    """Trains the runs and prints the table."""
    with tempfile.TemporaryDirectory() as folder:
        runs = configs(folder, steps)
        train([cfg for kind in runs.values() for cfg in kind])
        print(
            f"\n| {steps} steps, mean and standard deviation of {len(SEEDS)} seeds | dead fraction | held-out FVU |\n| --- | --- | --- |"
        )
        for kind, cfgs in runs.items():
            last = [json.loads((Path(run_dir(cfg)) / "metrics.jsonl").read_text().splitlines()[-1]) for cfg in cfgs]
            columns = [[row[f"{name}/layers.2.mlp"] for row in last] for name in ("dead_fraction", "heldout/fvu")]
            print(f"| {kind} | " + " | ".join(f"{statistics.mean(c):.4f} +- {statistics.stdev(c):.4f}" for c in columns) + " |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
