"""Activations scaled to a mean norm of sqrt(d), and coders moved between scaled activations and plain ones."""

from typing import NamedTuple

import torch
from torch import Tensor

from sae_transcoder.coder.jump_relu_coder import JumpReLUCoder
from sae_transcoder.coder.sparsify_parts import SparseCoder
from sae_transcoder.coder.trained_coder import TrainedCoder
from sae_transcoder.distributed import ALONE, Ranks


class Scales(NamedTuple):
    """What a coder's inputs and targets are multiplied with."""

    inputs: float
    targets: float

    def scaled(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets [token, d] in the coder's units; one tensor for an SAE."""
        scaled_x = x * self.inputs
        return scaled_x, scaled_x if y is x else y * self.targets


@torch.no_grad()
def find_scales(x: Tensor, y: Tensor, num_tokens: int, ranks: Ranks = ALONE) -> Scales:
    """The scales for which inputs and targets, of `num_tokens` over all ranks, have a mean norm of sqrt(d). Waits for the device.

    x, y: this rank's [token, d].
    """
    norms = torch.stack([values.norm(dim=1).sum(dtype=torch.float64) for values in (x, y)])
    return Scales(*(x.shape[1] ** 0.5 * num_tokens / ranks.all_reduce(norms)).tolist())


@torch.no_grad()
def to_scaled(coder: SparseCoder, scales: Scales, *, thresholds: bool = True) -> None:
    """Changes a coder of plain activations so that it computes the same from scaled ones, in their units, in place.

    thresholds: whether its thresholds are of plain activations too; False where they are in the units of scaled ones already.
    """
    coder.encoder.bias *= scales.inputs
    coder.b_dec *= scales.targets
    if thresholds and isinstance(coder, JumpReLUCoder | TrainedCoder) and coder.threshold is not None:
        coder.threshold.mul_(scales.inputs)
    if scales.inputs != scales.targets:
        for weight in (coder.W_dec, coder.W_skip):
            if weight is not None:
                weight *= scales.targets / scales.inputs


def to_plain(coder: SparseCoder, scales: Scales) -> None:
    """The inverse of `to_scaled`."""
    to_scaled(coder, Scales(1 / scales.inputs, 1 / scales.targets))
