"""How near the held-out L0 of coders that fire above thresholds comes to their k, on the demo.

    python benchmarks/ourselves/l0.py [--kinds batchtopk ...] [--k 8 32 64] [--steps 500] [--runs FOLDER] [--markdown]

Each kind is trained by its preset, experiment=demo_<kind>, at each k; and at the middle k in the ways that could move its threshold: with
excluded tokens, four batches a step (the threshold then averages four times as many), batches in four pieces, and two ranks. It prints the L0 over
the held-out tokens beside k.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import say, show
from sae_transcoder.api import load_config, sweep
from sae_transcoder.config import run_dir
from sae_transcoder.run_store import eval_file
from sae_transcoder.run_store.eval_file import Evaluation

KINDS = ["batchtopk", "matryoshka", "jumprelu"]
WAYS = {
    "tokens excluded": ["exclude_tokens=[10,11,12]", "max_norm_multiple=3"],
    "4 batches a step": ["grad_acc_steps=4", "batch_size=2"],
    "batches in 4 pieces": ["micro_acc_steps=4"],
}


def on_two_ranks(overrides: list[str]) -> Evaluation:
    """The evaluation of a run on two ranks, each with half of the batch."""
    overrides = [*overrides, "batch_size=4"]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sae_transcoder.train", *overrides]
    subprocess.run([sys.executable, *command], check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    evaluation = eval_file.read(run_dir(load_config(*overrides)))
    assert evaluation is not None
    return evaluation


def rows(kind: str, ks: list[int], steps: int, folder: Path) -> list[list[str]]:
    """The rows of one kind of coder: kind, way, k, L0, its distance from k in percent, FVU."""
    base = [f"experiment=demo_{kind}", "eval_end_to_end=false", f"max_samples={8 * steps}", f"save_dir={folder / kind}"]
    measured = [("", run.config.k, run.evaluation) for run in sweep(*base, f"k={','.join(map(str, ks))}")]
    middle = ks[len(ks) // 2]
    beta = load_config(*base).threshold_beta
    for way, settings in WAYS.items():
        if "grad_acc_steps=4" in settings and beta is not None:
            settings = [*settings, f"threshold_beta={beta**0.25:.6f}"]
        (run,) = sweep(*base, f"k={middle}", *settings)
        measured.append((way, middle, run.evaluation))
    measured.append(("2 ranks", middle, on_two_ranks([*base, f"k={middle}"])))
    found = []
    for way, k, evaluation in measured:
        metrics = evaluation.coders[0].metrics
        found.append(
            [kind, way, str(k), f"{metrics['l0']:.2f}", f"{100 * (metrics['l0'] / k - 1):+.1f} %", f"{metrics['fvu']:.4f}"]
        )
        say("  ".join(found[-1]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--k", nargs="+", type=int, default=[8, 32, 64])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--runs", type=Path, help="folder in which runs are kept; those that are done are not trained again")
    parser.add_argument("--markdown", action="store_true", help="a table for a README")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = [row for kind in asked.kinds for row in rows(kind, asked.k, asked.steps, asked.runs or Path(folder))]
    headings = ["kind", "how", "k", "held-out L0", "from k", "FVU"]
    show(f"held-out L0 after {asked.steps} steps", headings, table, markdown=asked.markdown)


if __name__ == "__main__":
    main()
