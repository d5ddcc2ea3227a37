"""What was tried for the training step and kept, or not: each beside the usual way, at the shapes of single.py and grid.py, on a CPU.

    python benchmarks/ourselves/tried.py [--markdown]        about a minute and a half; needs g++ for torch.compile

Top-k in two stages against torch's and numpy's; pre-activations in pieces against whole; the language model's forward in pieces, compiled, and with
plain attention; a matrix product by MKL (torch's choice) and by oneDNN; Muon's iteration in two number formats.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import show
from contenders.bare import seconds
from sae_transcoder.coder.latent_selection import select_preacts, top_k
from sae_transcoder.coder.muon import IN_BFLOAT16, newton_schulz
from sae_transcoder.language_model import loading
from sae_transcoder.process import host_memory

TOKENS, WIDTH, LAYERS = 4096, 256, 3


def ways_to_top_k(latents: int, k: int) -> dict[str, Callable[[], Any]]:
    """Ways to the k largest of each row."""
    preacts = torch.randn(TOKENS, latents)
    array = preacts.numpy()
    return {
        "torch.topk": lambda: preacts.topk(k, dim=-1, sorted=False),
        "in two stages (kept)": lambda: top_k(preacts, k),
        "numpy.argpartition": lambda: np.argpartition(array, latents - k, axis=1)[:, latents - k :],
    }


def encoder(latents: int, k: int) -> dict[str, Callable[[], Any]]:
    """Ways from inputs to chosen pre-activations."""
    given, weight, bias = torch.randn(TOKENS, WIDTH), torch.randn(latents, WIDTH) / 16, torch.randn(latents) / 10

    def pieces(size: int) -> None:
        for piece in given.split(size):
            top_k(F.linear(piece, weight, bias), k)

    return {
        "whole": lambda: top_k(F.linear(given, weight, bias), k),
        "in pieces of 2**21 (kept)": lambda: select_preacts(given, weight, bias, [lambda preacts: top_k(preacts, k)]),
        "in pieces of 128 tokens": lambda: pieces(128),
    }


def products() -> dict[str, Callable[[], Any]]:
    """The encoder's product alone."""
    given, weight, out = torch.randn(TOKENS, WIDTH), torch.randn(1024, WIDTH), torch.empty(TOKENS, 1024)
    return {
        "torch.mm (kept)": lambda: torch.mm(given, weight.T, out=out),
        "oneDNN, an internal operation": lambda: torch.ops.mkldnn._linear_pointwise(given, weight, None, "none", [], ""),
    }


def orthogonalisations(latents: int) -> dict[str, Callable[[], Any]]:
    """Muon's iteration on the gradient of one of a coder's matrices."""
    gradient = torch.randn(latents, WIDTH)
    return {
        "in float32 (kept)": lambda: newton_schulz(gradient, 5),
        "in bfloat16 (sparsify's)": lambda: IN_BFLOAT16(gradient, 5),
    }


def forwards() -> dict[str, Callable[[], Any]]:
    """The language model's forward of 16 sequences."""
    ids = torch.randint(0, 4096, (16, TOKENS // 16))

    def model(attention: str = "sdpa") -> Any:
        loaded = AutoModel.from_pretrained(loading.DEMO, dtype=torch.float32, attn_implementation=attention).eval()
        loaded.layers, loaded.norm = loaded.layers[:LAYERS], torch.nn.Identity()
        return loaded

    def forward(loaded: Any, part: Tensor) -> Any:
        return loaded(input_ids=part, use_cache=False)

    usual, plain, compiled = model(), model("eager"), model()
    for layer in compiled.layers:
        layer.forward = torch.compile(layer.forward)
    return {
        "whole (kept)": lambda: forward(usual, ids),
        "4 sequences at a time": lambda: [forward(usual, part) for part in ids.split(4)],
        "compiled (compile_model=true)": lambda: forward(compiled, ids),
        "attention without SDPA": lambda: forward(plain, ids),
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true", help="a table for a README")
    asked = parser.parse_args()
    torch.set_float32_matmul_precision("high")  # as in training
    host_memory.keep_freed()
    shapes = [(1024, 8), (1024, 32), (2048, 32), (2048, 64), (16384, 64)]
    tried = {f"top {k} of {latents:,}": ways_to_top_k(latents, k) for latents, k in shapes}
    tried |= {f"encoder and top {k} of {latents:,}": encoder(latents, k) for latents, k in [(2048, 32), (8192, 32)]}
    tried |= {"product with 1,024 latents": products(), f"forward of {LAYERS} layers": forwards()}
    tried |= {f"Muon's iteration, {latents:,} latents": orthogonalisations(latents) for latents in (512, 2048)}
    rows = [[what, way, f"{1000 * seconds(call, 'cpu'):.1f} ms"] for what, ways in tried.items() for way, call in ways.items()]
    show(
        f"{TOKENS:,} tokens, width {WIDTH}, CPU, {torch.get_num_threads()} threads",
        ["what", "how", "time"],
        rows,
        markdown=asked.markdown,
    )


if __name__ == "__main__":
    main()
