"""How much of the language model's computation transcoders explain: the replacement and completeness scores of attribution graphs.

    python benchmarks/peers/environments.py circuit_tracer && python benchmarks/peers/circuit_scores.py

Trains a transcoder on every MLP of the demo model for each k, all of them on one forward (experiment=demo_circuit), exports each set, and has
circuit-tracer attribute prompts, the beginnings of held-out sequences. About five minutes on two cores.

Scores (compute_graph_scores of circuit-tracer; https://transformer-circuits.pub/2025/attribution-graphs/methods.html, "Evaluating Our Graphs"):
replacement is the share of the influence of tokens on the next token that flows through latents and not through errors; completeness is the
share of each node's inputs that are no errors, weighted by the node's influence.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import common
from peers import environments
from sae_transcoder.api import Run, sweep
from sae_transcoder.exports.write import export
from sae_transcoder.preflight.plan import make_plan


def prompts_of(run: Run, count: int, length: int) -> list[list[int]]:
    """The first `length` tokens of sequences spread evenly over those that are held out."""
    heldout = make_plan(run.config).tokens.heldout
    return [heldout[i : i + 1][0][:length].tolist() for i in np.linspace(0, len(heldout) - 1, count).astype(int)]


def mean(pairs: list[list[float]], i: int) -> str:
    return f"{np.mean([pair[i] for pair in pairs]):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", default="8,16,32", help="active latents, comma-separated (8,16,32)")
    parser.add_argument("--prompts", type=int, default=5, help="how many (5)")
    parser.add_argument("--length", type=int, default=20, help="tokens of a prompt (20)")
    parser.add_argument("--samples", type=int, default=4000, help="sequences that are trained on (4000)")
    parser.add_argument(
        "--peers", type=Path, default=environments.DEFAULT, help="folder of the environments that environments.py made"
    )
    parser.add_argument("--markdown", action="store_true", help="tables for a README")
    asked = parser.parse_args()
    own = environments.python("circuit_tracer", asked.peers)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = sweep(
            "experiment=demo_circuit", f"k={asked.k}", f"max_samples={asked.samples}", f"save_dir={folder}", "sweep_name=sets"
        )
        sets = [str(export(str(run.directory), "circuit_tracer", folder / f"set_{run.config.k}")) for run in runs]
        job = {"sets": sets, "prompts": prompts_of(runs[0], asked.prompts, asked.length)}
        (folder / "job.json").write_text(json.dumps(job))
        found = common.process(
            [str(own), str(common.HERE / "contenders" / "peer_circuit_tracer.py"), str(folder / "job.json")], "cpu"
        )
    rows = [
        [
            str(run.config.k),
            f"{np.mean([coder.metrics['fvu'] for coder in run.evaluation.coders]):.4f}",
            *(f"{replacement:.3f}, {completeness:.3f}" for replacement, completeness in scores),
            f"{mean(scores, 0)}, {mean(scores, 1)}",
        ]
        for run, scores in zip(runs, found["scores"], strict=True)
    ]
    head = ["k", "mean held-out FVU", *(f"prompt {i + 1}" for i in range(asked.prompts)), "mean"]
    common.show("Replacement score, completeness score", head, rows, markdown=asked.markdown)
    for i, prompt in enumerate(found["prompts"]):
        print(f"{i + 1}. {prompt!r}")


if __name__ == "__main__":
    main()
