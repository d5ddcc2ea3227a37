"""The peak memory of a training step is that of the tensors that must exist."""

import subprocess
import sys
from pathlib import Path

import pytest

TOKENS, WIDTH, LATENTS, K = 2048, 256, 8192, 64

SCRIPT = f"""
import sys, torch
torch.set_num_threads(1)
from conftest import tiny_config
from sae_transcoder.forward import Activations
from sae_transcoder.run import Run

device = torch.device(sys.argv[2])

def peak(reset=False):
    if device.type == "cuda":
        torch.cuda.synchronize()
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts anew
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024

def step(run, tokens):
    y = torch.randn(1, tokens, {WIDTH}, device=device)
    run.train_on(torch.zeros(1, tokens, dtype=torch.long, device=device), {{"h": Activations(y, y)}})

run = Run(tiny_config("sae", batch_size=1, k={K}, num_latents={LATENTS}, auxk_alpha=0.0, corrections=sys.argv[1] == "ours"),
          {{"h": {WIDTH}}}, 10, device)
step(run, 8)  # optimizer state and library buffers are there
before = peak(reset=True)
step(run, {TOKENS})
print(peak() - before)
"""


def grown(kind: str, device: str) -> int:
    """Bytes by which a step of TOKENS tokens raises the peak of a process that has made a step of a few."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, kind, device], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_training_step_holds_little_more_than_what_must_exist(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    numbers = {
        "pre-activations": TOKENS * LATENTS,
        "gradients of encoder and decoder": 2 * LATENTS * WIDTH,
        "input, centred input, reconstruction, error and the gradient of each": 8 * TOKENS * WIDTH,
        "chosen latents: values, indices (8 bytes), their order (8 bytes), gradients": 7 * TOKENS * K,
    }
    must_exist = 4 * sum(numbers.values())
    assert grown("ours", device) < 1.5 * must_exist
    if device == "cpu":
        assert grown("sparsify", device) > must_exist + 4 * TOKENS * K * WIDTH * 0.7, (
            "sparsify still materialises tokens x k x width"
        )
