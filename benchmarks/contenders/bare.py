"""The bare parts of a training step at a job's shapes: the least time that they take here, each by the fastest of several kernels.

Started by single.py and grid.py with a job whose weights exist; prints a JSON line {part: {kernel: seconds a batch}}. The language model's forward
ends at the hookpoint; the parts of a coder are those of an SAE with top-k latents: encoder product and top-k, decode, the gradient of the
chosen activations, and those of both weight matrices. Left out: Adam, biases, losses, norms of decoder rows, counting, logging.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel

sys.path.insert(0, str(Path(__file__).parents[1]))

from contenders.meter import ARRAYS, Job, job
from sae_transcoder.coder.latent_selection import select_preacts, top_k
from sae_transcoder.process import host_memory

REPEATS = 9
PIECE = 256  # tokens: a piece of the pre-activations stays in the processor's cache


def seconds(function: Callable[[], Any], device: str) -> float:
    """The median time of a call, after one that is not counted."""
    times = []
    for _ in range(REPEATS + 1):
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def model_forward(job: Job) -> tuple[dict[str, Callable[[], Any]], Tensor]:
    """The forward of the layers that lead to the hookpoint {kernel: call}, and its output [token, d] for the first batch."""
    model = AutoModel.from_pretrained(job.model, dtype=getattr(torch, job.dtype)).to(job.device).eval()
    depth = int(job.hookpoint.rpartition(".")[2]) + 1
    model.layers, model.norm = model.layers[:depth], torch.nn.Identity()
    ids = torch.from_numpy(job.ids()[: job.batch]).to(job.device)

    def forward() -> Tensor:
        return model(input_ids=ids, use_cache=False).last_hidden_state

    def in_pieces() -> None:
        for piece in ids.split(4):
            model(input_ids=piece, use_cache=False)

    return {"whole batch": forward, "4 sequences at a time": in_pieces}, forward().flatten(0, 1).float()


def coder_parts(x: Tensor, weights: dict[str, Tensor], k: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """{part: {kernel: call}} for inputs x [token, d] of one coder."""
    encoder, bias, decoder = weights["encoder"], weights["encoder_bias"], weights["decoder"]
    given = x - weights["shift"]
    tokens, latents = len(x), len(encoder)
    preacts = F.linear(given, encoder, bias)
    acts, indices = preacts.relu().topk(k, dim=-1, sorted=False)
    grad = torch.randn_like(x)
    acts_grad = torch.randn_like(acts)
    rows = torch.arange(0, tokens * k + 1, k, device=x.device)

    def sparse(values: Tensor) -> Tensor:
        """[token, latent] in compressed rows; its columns need not be sorted for products."""
        return torch.sparse_csr_tensor(rows, indices.flatten(), values.flatten(), (tokens, latents), check_invariants=False)

    def dense(values: Tensor) -> Tensor:
        return torch.zeros_like(preacts).scatter_(1, indices, values)

    def in_pieces() -> None:
        for piece in given.split(PIECE):
            F.linear(piece, encoder, bias).topk(k, dim=-1, sorted=False)

    def chosen_dense() -> Tensor:
        return (grad @ decoder.T).gather(1, indices)

    def chosen_in_pieces() -> None:
        for piece, where in zip(grad.split(PIECE), indices.split(PIECE), strict=True):
            (piece @ decoder.T).gather(1, where)

    def chosen_gathered() -> None:
        for piece, where in zip(grad.split(PIECE), indices.split(PIECE), strict=True):
            torch.bmm(decoder[where.flatten()].view(*where.shape, -1), piece[:, :, None])

    whole = torch.arange(0, tokens * k, k, device=x.device)
    by_bag = torch.ops.aten._embedding_bag_per_sample_weights_backward
    belongs = torch.arange(tokens, device=x.device).repeat_interleave(k)

    def chosen_by_bag() -> Tensor:
        """The backward of embedding_bag for its weights: a product of two rows for each chosen latent."""
        return by_bag(grad, decoder, indices.flatten(), whole, belongs, 0)

    def inverted() -> tuple[Tensor, Tensor]:
        """Both weights' gradients: the entries sorted by latent once, then for each latent a sum over the tokens that chose it."""
        flat = indices.flatten()
        order = flat.argsort(stable=True)
        starts = torch.searchsorted(flat[order], torch.arange(latents, device=x.device))
        where = order // k

        def one(values: Tensor, of: Tensor) -> Tensor:
            return F.embedding_bag(where, of, starts, mode="sum", per_sample_weights=values.flatten()[order])

        return one(acts, grad), one(acts_grad, given)

    return {
        "encoder product, top-k": {
            "whole": lambda: F.linear(given, encoder, bias).topk(k, dim=-1, sorted=False),
            f"in pieces of {PIECE} tokens": in_pieces,
            "in pieces, top-k in two stages": lambda: select_preacts(given, encoder, bias, [lambda preacts: top_k(preacts, k)]),
        },
        "decode": {
            "embedding_bag": lambda: F.embedding_bag(indices, decoder, per_sample_weights=acts, mode="sum"),
            "sparse product": lambda: sparse(acts) @ decoder,
            "dense product": lambda: dense(acts) @ decoder,
        },
        "gradient of activations": {
            "dense product, gather": chosen_dense,
            "the same in pieces": chosen_in_pieces,
            "gathered rows": chosen_gathered,
            "embedding_bag's": chosen_by_bag,
        },
        "gradients of both matrices": {
            "inverted index": inverted,
            "sparse products": lambda: (sparse(acts).t() @ grad, sparse(acts_grad).t() @ given),
            "dense products": lambda: (dense(acts).T @ grad, dense(acts_grad).T @ given),
        },
    }


@torch.no_grad()
def main(job: Job) -> None:
    """Times all kernels; those of several coders are added up, kernel by kernel."""
    if job.device == "cpu":  # as in training
        torch.set_float32_matmul_precision("high")
        host_memory.keep_freed()
    forwards, x = model_forward(job)
    found: dict[str, dict[str, float]] = {
        "language model to the hookpoint": {n: seconds(f, job.device) for n, f in forwards.items()}
    }
    with np.load(job.weights) as kept:
        for i, coder in enumerate(job.coders):
            weights = {name: torch.from_numpy(kept[f"{i}/{name}"]).to(job.device) for name in ARRAYS}
            for part, kernels in coder_parts(x, weights, coder.k).items():
                own = found.setdefault(part, {})
                for kernel, call in kernels.items():
                    own[kernel] = own.get(kernel, 0.0) + seconds(call, job.device)
    print("\n" + json.dumps(found), flush=True)


if __name__ == "__main__":
    main(job())
