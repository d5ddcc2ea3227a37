"""Whether the learning rate makes a transcoder's L0 fall below its k, and its scores stop rising with k.

    python benchmarks/ourselves/transcoder_l0.py [--k 16 32 64] [--rates 1e-3 ...] [--steps 500] [--runs FOLDER] [--markdown]

The demo's transcoder on layers.2.mlp, 2,048 latents, at each k and rate, `null` (the automatic rate) among them; all train on one forward. It prints
the held-out L0, FVU, CE loss score and KL score. About ten minutes on two CPU cores.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import show
from sae_transcoder.api import Run, sweep

METRICS = {
    "l0": ("L0", ".1f"),
    "fvu": ("held-out FVU", ".4f"),
    "ce_loss_score": ("CE loss score", ".3f"),
    "kl_div_score": ("KL score", ".3f"),
}


def trained(ks: list[int], rates: list[str], steps: int, folder: Path) -> list[Run]:
    """The runs of all k, at all rates, k first."""
    base = ["experiment=demo", "model_type=transcoder", f"max_samples={8 * steps}", f"save_dir={folder}", "save_best=false"]
    return sweep(*base, f"k={','.join(map(str, ks))}", f"lr={','.join(rates)}")


def row(run: Run) -> list[str]:
    """A run's rate and k, and what was measured."""
    metrics = run.evaluation.mean()
    rate = "null" if run.config.lr is None else f"{run.config.lr:g}"
    return [rate, str(run.config.k), *(format(metrics[name], spec) for name, (_, spec) in METRICS.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", nargs="+", type=int, default=[16, 32, 64])
    parser.add_argument("--rates", nargs="+", default=["1e-3", "3e-3", "1e-2", "3e-2", "null"])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--runs", type=Path, help="folder in which runs are kept; those that are done are not trained again")
    parser.add_argument("--markdown", action="store_true", help="a table for a page")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = trained(asked.k, asked.rates, asked.steps, asked.runs or Path(folder))
        by_k = [runs[i :: len(asked.rates)] for i in range(len(asked.rates))]  # the last setting of a sweep changes first
        rows = [row(run) for of_rate in by_k for run in of_rate]
    show(
        "a transcoder by learning rate and k", ["lr", "k", *(title for title, _ in METRICS.values())], rows, markdown=asked.markdown
    )


if __name__ == "__main__":
    main()
