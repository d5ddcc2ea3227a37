"""What do BatchTopK, Matryoshka and JumpReLU cost? A training step of each kind of coder, over one of topk at equal k; on a CPU or a GPU.

    python benchmarks/ourselves/kinds_cost.py                        here; a minute

The coders alone, without the language model: 4,096 tokens, 2,048 latents, width 256, k = 32. The activations are the demo model's after layer 2,
normalised, for which JumpReLU's bandwidth is meant. A topk coder is trained on them for `--trained` steps; then every kind steps from its
weights at a rate of 1e-9, so that it stays as it is: jumprelu at one threshold by which k fire for a token. Steps of all kinds in turn; the
median of each, as time and, on a CPU, as the processors' time, which other programs disturb less. The table says how many latents fired; `most`
is what each kind may cost.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel

sys.path.insert(0, str(Path(__file__).parents[1]))

import common
from sae_transcoder.config.composer import composed
from sae_transcoder.language_model import loading
from sae_transcoder.language_model.forward import Activations, capture
from sae_transcoder.training.batched_training import train_on_batch
from sae_transcoder.training.coder_trainer import CoderTrainer
from sae_transcoder.training.read_ahead import read_ahead

POINT, WIDTH, SEQUENCES, LENGTH, LATENTS, K = "layers.2", 256, 16, 256, 2048, 32
LEVELS = "matryoshka_widths=[64,256,1024,2048]"
KINDS = {
    "topk": [],
    "topk, matryoshka": [LEVELS],
    "batchtopk": ["activation=batchtopk"],
    "batchtopk, matryoshka": ["activation=batchtopk", LEVELS],
    **{f"jumprelu, {loss}": ["activation=jumprelu", f"jumprelu_loss={loss}"] for loss in ("quadratic", "step", "tanh")},
}
MOST = {"batchtopk": 1.3, "topk, matryoshka": 1.3, "batchtopk, matryoshka": 1.3, "jumprelu, quadratic": 1.6}
WARM = 4  # steps of each kind that are not timed: the running threshold and the optimizer's state


def new_run(settings: list[str], rate: float, steps: int, device: torch.device) -> CoderTrainer:
    """A run of one coder."""
    usual = ["experiment=demo", f"batch_size={SEQUENCES}", f"max_steps={steps}", "max_samples=null", "exclude_first_tokens=0"]
    usual += [f"num_latents={LATENTS}", f"k={K}", f"lr={rate}", f"device={device.type}"]
    usual += ["normalize_activations=mean_norm", "auxk_alpha=0"]
    return CoderTrainer(composed([*usual, *settings]), {POINT: WIDTH}, steps * SEQUENCES, device)


def train(run: CoderTrainer, tokens: Tensor, given: Tensor) -> None:
    """A step on activations [batch, position, d]."""
    activations = {POINT: Activations(given, given)}
    read_ahead([run], tokens, activations)
    train_on_batch([run], tokens, activations)
    if run.device.type == "cuda":
        torch.cuda.synchronize()


def start_from(run: CoderTrainer, weights: dict[str, Tensor], x: Tensor) -> None:
    """Gives a run's coder the trained weights, and JumpReLU the threshold by which k latents fire for a token of its first batch, x [token, d]."""
    coder = run.coders[POINT]
    coder.load_state_dict(weights, strict=False)
    run.biases_set.add(POINT)
    if run.cfg.activation == "jumprelu":
        with torch.no_grad():
            x = x * (WIDTH**0.5 / x.norm(dim=1).mean())
            preacts = (x - coder.b_dec) @ coder.encoder.weight.T + coder.encoder.bias
            coder.threshold.fill_(preacts.flatten().topk(K * len(x)).values[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15, help="timed steps of each kind (15)")
    parser.add_argument("--trained", type=int, default=60, help="steps of training before (60)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--markdown", action="store_true", help="a table for a README")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    common.prepare_device(device)
    with tempfile.TemporaryDirectory() as folder:
        common.prepare(Path(folder), asked.trained, asked.device, common.environments.DEFAULT)
        ids = torch.from_numpy(np.load(f"{folder}/tokens.npy"))
    model = AutoModel.from_pretrained(loading.DEMO, dtype=torch.float32).to(device).eval()
    first = new_run([], 1e-2, asked.trained, device)
    for tokens in ids.split(SEQUENCES):
        given = capture(model, [POINT], tokens.to(device))[POINT].output
        train(first, tokens, given)
    weights = first.coders[POINT].state_dict()
    runs = {kind: new_run(settings, 1e-9, asked.steps + WARM, device) for kind, settings in KINDS.items()}
    for run in runs.values():
        start_from(run, weights, given.flatten(0, 1))
    found = common.medians_in_turn(
        {kind: partial(train, run, tokens, given) for kind, run in runs.items()}, asked.steps, untimed=WARM
    )
    title = f"{asked.steps} steps each, {common.device_name(asked.device)}"
    show(runs, found, title, asked.markdown)


def show(runs: Mapping[str, CoderTrainer], found: Mapping[str, Sequence[float]], title: str, markdown: bool) -> None:
    """The table."""
    rows = []
    for kind, own in found.items():
        cells = [(f"{1000 * t:.1f} ms", f"{t / topk:.2f}") for t, topk in zip(own, found["topk"], strict=True)]
        active = runs[kind].metrics().get(f"l0/{POINT}", float(K))
        rows.append([kind, f"{active:.2f}", *(cell for pair in cells for cell in pair), f"{MOST[kind]}" if kind in MOST else ""])
    headings = ["", "active of a token", "a step", "of topk's", "CPU time", "of topk's", "most"]
    common.show(title, headings, rows, markdown=markdown)


if __name__ == "__main__":
    main()
