"""How well coders reconstruct tokens that were held out."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sae_transcoder.config import LossFn
from sae_transcoder.data import Sequences
from sae_transcoder.language_model import Activations, Replace, capture, end_to_end_loss
from sae_transcoder.upstream import SparseCoder

Pairs = Callable[[Activations, Tensor], tuple[Tensor, Tensor]]
ReplaceFor = Callable[[Tensor], Replace]


@torch.no_grad()
def heldout_fvu(
    model: PreTrainedModel,
    coders: Mapping[str, SparseCoder],
    hookpoint: Mapping[str, str],
    pairs: Pairs,
    heldout: Sequences,
    batch_size: int,
) -> dict[str, float]:
    """Each coder's fraction of variance unexplained over all of `heldout`: the squared error summed over tokens and dimensions,
    over that of the mean token of the whole set, in float64.

    hookpoint: {coder: its hookpoint}; pairs: (activations, tokens) -> the coder's input and target, each [token, d].
    """
    points = list(dict.fromkeys(hookpoint.values()))
    error = dict.fromkeys(coders, 0.0)
    count = dict.fromkeys(points, 0)
    total = {point: torch.zeros((), dtype=torch.float64) for point in points}
    square = {point: torch.zeros((), dtype=torch.float64) for point in points}
    for start in range(0, len(heldout), batch_size):
        tokens = torch.from_numpy(heldout[start : start + batch_size]).to(model.device)
        seen = capture(model, points, tokens)
        for point in points:
            x, y = pairs(seen[point], tokens)
            wide = y.double()
            count[point] += len(y)
            total[point] = total[point] + wide.sum(0).cpu()
            square[point] = square[point] + wide.pow(2).sum().cpu()
            for name, coder in coders.items():
                if hookpoint[name] == point:
                    error[name] += (y - reconstruct(coder, x)).double().pow(2).sum().item()
    variance = {point: (square[point] - total[point].pow(2).sum() / max(1, count[point])).item() for point in points}
    # NaN where every held-out token is left out.
    return {name: error[name] / variance[hookpoint[name]] if variance[hookpoint[name]] > 0 else math.nan for name in coders}


@torch.no_grad()
def heldout_loss(
    model: PreTrainedModel, replace_for: ReplaceFor, points: Sequence[str], heldout: Sequences, batch_size: int, loss_fn: LossFn
) -> float:
    """The end-to-end loss over all of `heldout`, in nats, with the modules at `points` replaced; each sequence counts the same.

    replace_for: (tokens) -> (hookpoint, activations) -> what takes the module's place, [batch, position, d].
    """
    total = 0.0
    for start in range(0, len(heldout), batch_size):
        tokens = torch.from_numpy(heldout[start : start + batch_size]).to(model.device)
        total += end_to_end_loss(model, tokens, points, replace_for(tokens), loss_fn).item() * len(tokens)
    return total / len(heldout)


def reconstruct(coder: SparseCoder, x: Tensor) -> Tensor:
    """The coder's output for inputs x [token, d]: [token, d]."""
    encoded = coder.encode(x)
    out = coder.decode(encoded.top_acts, encoded.top_indices)
    return out if coder.W_skip is None else out + x.to(out.dtype) @ coder.W_skip.mT
