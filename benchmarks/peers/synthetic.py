"""Do coders find features that are known? SynthSAEBench-16k: BatchTopK, Matryoshka and JumpReLU, of this project and of SAELens, on one stream.

    python benchmarks/peers/environments.py && python benchmarks/peers/synthetic.py          half an hour on two quiet CPU cores
    python benchmarks/peers/synthetic.py --samples 200_000_000 --eval-samples 500_000 --device cuda          as published, on a GPU
    python benchmarks/peers/synthetic.py --small --lr 3e-3                                   whether it works, a few minutes

A process in SAELens's environment draws each batch of 1,024 samples once; it goes to this project's three coders, which train as a pack, and to
SAELens's, which its own MultiSAETrainer trains. 4,096 latents, L0 25, a constant rate of 3e-4 for all, as SAELens's docs/synth_sae_bench.md
recommends. SAELens's eval_sae_on_synthetic_data then scores all coders on the same new samples, each by the thresholds that it is published
with. The table: MCC, F1 and what else that returns, and the scores that SAELens publishes after 200 M samples.

The published model lies on the hub (decoderesearch/synth-sae-bench-16k-v2). Here it is made once, from its published parameters and seed: 16,384
features, width 768; a few minutes, kept beside the peers' environments. It was made with a GPU's generator, whose random numbers are not a
CPU's: what a CPU makes is another draw of the same distribution. So coders are compared with each other on it, and not with published scores.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import common
from common import OURS, SAELENS, say
from contenders.synthetic import Task
from peers import environments

KINDS = ["batchtopk", "matryoshka", "jumprelu"]
PUBLISHED = {"batchtopk": (0.7574, 0.7316), "matryoshka": (0.7927, 0.8793), "jumprelu": (0.7527, 0.7317)}  # MCC, F1 at L0 25
OURS_SCRIPT, PEER_SCRIPT = "contenders/synthetic_ours.py", "contenders/synthetic_saelens.py"


def command(task_path: str, python: Path, script: str, *words: str) -> list[str]:
    """A program's part."""
    return [str(python), str(common.HERE / script), *words, task_path]


def quiet() -> dict[str, str]:
    """The environment of programs without their progress bars."""
    return os.environ | {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}


def made(task: Task, path: str, python: Path) -> None:
    """Makes the synthetic model, where it is not there yet."""
    if not (Path(task.model) / "synthetic_model.safetensors").exists():
        say(f"making the synthetic model in {task.model}")
        if subprocess.run(command(path, python, PEER_SCRIPT, "build")).returncode:
            sys.exit("the synthetic model could not be made")


def trained(task: Task, path: str, python: Path) -> None:
    """Draws every batch once, and hands it to both programs as they train."""
    drawing = subprocess.Popen(command(path, python, PEER_SCRIPT, "draw"), stdout=subprocess.PIPE, env=quiet())
    training = {
        OURS: subprocess.Popen(command(path, Path(sys.executable), OURS_SCRIPT), stdin=subprocess.PIPE, env=quiet()),
        SAELENS: subprocess.Popen(command(path, python, PEER_SCRIPT, "train"), stdin=subprocess.PIPE, env=quiet()),
    }
    assert drawing.stdout is not None
    try:
        for number in range(1, task.steps + 1):
            batch = drawing.stdout.read(task.batch_bytes)
            if len(batch) < task.batch_bytes:
                sys.exit("the drawing of batches failed")
            for process in training.values():
                assert process.stdin is not None
                process.stdin.write(batch)
            if number % 100 == 0:
                say(f"batch {number} of {task.steps} is drawn")
        for process in training.values():
            process.stdin.close()
        if failed := [name for name, process in training.items() if process.wait()]:
            sys.exit(f"{' and '.join(failed)} failed")
    except BrokenPipeError:
        sys.exit("a program ended before its batches did")
    finally:
        for process in (drawing, *training.values()):
            process.kill()
            process.wait()


def scored(path: str, python: Path, device: str) -> dict[str, dict[str, Any]]:
    """{"PROGRAM KIND": scores}."""
    return common.process(command(path, python, PEER_SCRIPT, "score"), device)


def show(found: dict[str, dict[str, Any]], title: str, markdown: bool) -> None:
    """The table, and how far ours lie above SAELens's."""
    rows = []
    for name, scores in found.items():
        program, kind = name.split()
        f1 = scores["classification"]["f1_score"]
        values = [f"{scores['mcc']:.4f}", f"{f1:.4f}"]
        values += [f"{scores[score]:.4f}" for score in ("uniqueness", "explained_variance")]
        values += [f"{scores['sae_l0']:.2f}", str(scores["dead_latents"])]
        above = ""
        if program == OURS:
            theirs = found[f"{SAELENS} {kind}"]
            above = f"{scores['mcc'] - theirs['mcc']:+.4f}, {f1 - theirs['classification']['f1_score']:+.4f}"
        rows.append([f"{program}, {kind}", *values, above, ", ".join(f"{value:.4f}" for value in PUBLISHED[kind])])
    headings = [
        "",
        "MCC",
        "F1",
        "uniqueness",
        "explained variance",
        "L0",
        "dead",
        "MCC, F1 above SAELens's",
        "published, 200 M samples",
    ]
    common.show(title, headings, rows, markdown=markdown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=500_000, help="to train on (500,000)")
    parser.add_argument("--eval-samples", type=int, default=100_000, help="to score on (100,000)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of coders (all)")
    parser.add_argument("--lr", type=float, default=3e-4, help="Adam's constant rate, of both programs (3e-4)")
    parser.add_argument(
        "--l0-coefficient", type=float, default=0.3, help="weight of JumpReLU's sparsity loss, of both programs (0.3)"
    )
    parser.add_argument("--init-threshold", type=float, default=0.5, help="JumpReLU's at the start, of both programs (0.5)")
    parser.add_argument(
        "--init-norm",
        type=float,
        default=0.57735,
        help="of JumpReLU's decoder rows at the start, of both programs (0.57735, the norm of sparsify's encoder rows)",
    )
    parser.add_argument("--bandwidth", type=float, default=2.0, help="JumpReLU's, of both programs (2)")
    parser.add_argument("--seed", type=int, default=0, help="of samples and weights (0)")
    parser.add_argument(
        "--small", action="store_true", help="a model of 1,024 features and 20,480 samples, to see whether it works"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--peers", type=Path, default=environments.DEFAULT, help="folder of the peers' environments")
    parser.add_argument(
        "--model", type=Path, help="folder of the synthetic model, made where it is not there (beside the environments)"
    )
    parser.add_argument("--markdown", action="store_true", help="a table for a README")
    parser.add_argument("--json", type=Path, help="also write the scores here")
    asked = parser.parse_args()
    python = environments.python(SAELENS, asked.peers)
    name = f"synth_sae_bench_{'small' if asked.small else '16k'}_{asked.device.partition(':')[0]}"
    size: dict[str, Any] = dict(d=768, latents=4096, k=25, widths=[128, 512, 2048, 4096])
    if asked.small:
        size = dict(d=96, latents=256, k=8, widths=[8, 32, 128, 256])
    with tempfile.TemporaryDirectory() as folder:
        task = Task(
            folder=folder,
            model=str(asked.model or asked.peers / name),
            small=asked.small,
            kinds=asked.kinds,
            **size,
            lr=asked.lr,
            batch=1024,
            samples=asked.samples,
            eval_samples=asked.eval_samples,
            device=asked.device,
            seed=asked.seed,
            l0_coefficient=asked.l0_coefficient,
            init_threshold=asked.init_threshold,
            init_norm=asked.init_norm,
            bandwidth=asked.bandwidth,
        )
        path = task.write()
        made(task, path, python)
        trained(task, path, python)
        found = scored(path, python, task.device)
    title = f"{task.steps * task.batch:,} samples, rate {task.lr:g}, {common.device_name(task.device)}"
    show(found, title, asked.markdown)
    if asked.json:
        asked.json.write_text(json.dumps({"task": vars(task), "scores": found}, indent=1))


if __name__ == "__main__":
    main()
