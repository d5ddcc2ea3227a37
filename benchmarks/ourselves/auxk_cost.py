"""What does AuxK cost? A training step in which it acts, over one without it, for different numbers of dead latents; on a CPU or a GPU.

    python benchmarks/ourselves/auxk_cost.py                        here; half a minute
    git worktree add ../before COMMIT && PYTHONPATH=../before python benchmarks/ourselves/auxk_cost.py         an older version, for comparison

The demo model to the end of layer 2 on 16 sequences of 256 tokens, an SAE of 2,048 latents, k = 32; AuxK takes up to 128 dead latents a token.
Steps of all kinds in turn; the median of each, as time and, on a CPU, as the processors' time, which other programs disturb less.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModel

sys.path.insert(0, str(Path(__file__).parents[1]))

import common
from sae_transcoder.config.composer import composed
from sae_transcoder.language_model import loading
from sae_transcoder.language_model.forward import capture
from sae_transcoder.training.batched_training import train_on_batch
from sae_transcoder.training.coder_trainer import CoderTrainer
from sae_transcoder.training.read_ahead import read_ahead

POINT, WIDTH, SEQUENCES, LENGTH = "layers.2", 256, 16, 256
DEAD = (0, 16, 128, 256, 512, 1024, 2048)


def step_with(dead: int, model: torch.nn.Module, device: torch.device, steps: int) -> Callable[[], None]:
    """A call that makes a training step of a run, of whose latents so many count as dead; 0: without AuxK."""
    settings = [
        "experiment=demo",
        f"batch_size={SEQUENCES}",
        f"max_steps={steps}",
        "max_samples=null",
        "dead_feature_threshold=1000",
    ]
    cfg = composed([*settings, f"auxk_alpha={0.03125 if dead else 0}"])
    run = CoderTrainer(cfg, {POINT: WIDTH}, steps * SEQUENCES, device)
    run.tokens = 10**6  # past the threshold: latents may be dead
    generator = torch.Generator().manual_seed(0)
    latents = torch.randperm(run.coders[POINT].num_latents, generator=generator)[:dead].to(device)

    def step() -> None:
        run.tokens_since_fired[POINT].zero_()
        run.tokens_since_fired[POINT][latents] = 10**6  # whatever fired
        tokens = torch.randint(4096, (SEQUENCES, LENGTH), generator=generator)
        activations = capture(model, [POINT], tokens.to(device))
        read_ahead([run], tokens, activations)
        train_on_batch([run], tokens, activations)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=9, help="timed steps of each kind (9)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--markdown", action="store_true", help="a table for a README")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    common.prepare_device(device)
    model = AutoModel.from_pretrained(loading.DEMO, dtype=torch.float32).to(device).eval()
    steps = {dead: step_with(dead, model, device, asked.steps + 2) for dead in DEAD}
    usual = common.medians_in_turn(steps, asked.steps, untimed=2)
    rows = []
    for dead, own in usual.items():
        cells = [(f"{1000 * t:.0f} ms", f"{t / without:.2f}") for t, without in zip(own, usual[0], strict=True)]
        rows.append([f"{dead:,}" if dead else "no AuxK", *(cell for pair in cells for cell in pair)])
    headings = ["dead of 2,048 latents", "a step", "of one without", "CPU time", "of one without"]
    title = f"{asked.steps} steps each, {common.device_name(asked.device)}"
    common.show(title, headings, rows, markdown=asked.markdown)


if __name__ == "__main__":
    main()
