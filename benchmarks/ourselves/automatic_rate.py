"""How good the automatic learning rate is: lr=null beside fixed rates, over lengths, widths, k, optimizers, kinds of coders and model types.

    python benchmarks/ourselves/automatic_rate.py [--runs FOLDER] [--only length ...] [--markdown]          about an hour on two CPU cores

The demo model's layer 2, batches of 2,048 tokens. Each case differs in one thing from the base case: 250 steps, eight times the
width, k = 32, topk, Adam. All rates of a case train on one forward. Per case: the held-out FVU at each rate, at the automatic one, and how far the
latter is above the best of the fixed ones.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import say, show
from sae_transcoder.api import sweep

RATES = ["1e-3", "3e-3", "1e-2", "3e-2", "1e-1"]
BASE = {"steps": 250, "batch_size": 8, "expansion_factor": 8, "k": 32, "optimizer": "adam", "architecture": "topk"}
VARIED: dict[str, list[dict[str, str | int]]] = {
    "length": [{"steps": steps} for steps in (30, 60, 125, 250, 500, 1000)],
    "width": [{"expansion_factor": factor} for factor in (2, 32)],
    "k": [{"k": k} for k in (8, 128)],
    "batch": [{"batch_size": 32, "steps": 125}, {"batch_size": 2, "steps": 4000}],
    "optimizer": [{"optimizer": name, "steps": steps} for name in ("muon", "signum") for steps in (60, 250)],
    "optimizer and k": [{"optimizer": name, "k": k} for name in ("muon", "signum") for k in (8, 128)],
    "kind": [{"architecture": kind} for kind in ("batchtopk", "matryoshka", "jumprelu")],
}


def fvus(model_type: str, case: dict[str, str | int], rates: list[str], folder: Path) -> list[float]:
    """The held-out FVU at each rate."""
    own = BASE | case
    settings = [f"{name}={value}" for name, value in own.items() if name != "steps"]
    if own["architecture"] == "jumprelu":
        settings.append("normalize_activations=mean_norm")
    samples = int(own["steps"]) * int(own["batch_size"])
    demo = ["experiment=demo", f"model_type={model_type}", "eval_end_to_end=false", "save_best=false", "eval_samples=64"]
    runs = sweep(*demo, *settings, f"max_samples={samples}", f"lr={','.join(rates)}", f"save_dir={folder}")
    return [run.evaluation.coders[0].metrics["fvu"] for run in runs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(VARIED), default=list(VARIED))
    parser.add_argument("--model-types", nargs="+", choices=["sae", "transcoder"], default=["sae", "transcoder"])
    parser.add_argument("--rates", nargs="+", default=RATES, help="fixed rates")
    parser.add_argument("--runs", type=Path, help="folder in which runs are kept; those that are done are not trained again")
    parser.add_argument("--markdown", action="store_true", help="a table for a README")
    asked = parser.parse_args()
    table = []
    with tempfile.TemporaryDirectory() as folder:
        for model_type in asked.model_types:
            for case in (case for varied in asked.only for case in VARIED[varied]):
                *fixed, automatic = fvus(model_type, case, [*asked.rates, "null"], asked.runs or Path(folder))
                label = ", ".join(f"{name}={value}" for name, value in case.items())
                above = f"{100 * (automatic / min(fixed) - 1):+.1f} %"
                table.append([model_type, label, *(f"{fvu:.4f}" for fvu in fixed), f"{automatic:.4f}", above])
                say("  ".join(table[-1]))
    show("held-out FVU by rate", ["", "case", *asked.rates, "null", "above the best"], table, markdown=asked.markdown)


if __name__ == "__main__":
    main()
