"""What a coder computes, with its gradients: activations of chosen latents, their decoding, squared errors."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sae_transcoder.coder.row_sums import Sums


class Selection(NamedTuple):
    """Latents that fire for tokens, by one way of choosing them; of several coders side by side, whose tokens and latents follow each other."""

    preacts: Tensor  # of the chosen latents, in the shape that `by` takes
    by: Sums
    rows: Tensor | None = None  # the latents among which they were chosen; None: all
    blocks: int = 1  # how many coders

    def among(self, weight: Tensor) -> Tensor:
        """The rows of a weight or bias [latent, ...] of the latents among which they were chosen."""
        return weight if self.rows is None else weight[self.rows]

    def added(self, whole: Tensor | None, own: Tensor, like: Tensor) -> Tensor:
        """`whole`, shaped as `like` [latent, ...] (None: zeros), with the gradient `own` of these latents' rows added in place."""
        if self.rows is None:
            return own if whole is None else whole.add_(own)
        return (torch.zeros_like(like) if whole is None else whole).index_add_(0, self.rows, own)

    def of_shifts(self, totals: Tensor, weight: Tensor) -> Tensor:
        """What each coder's inputs have in common as a gradient: totals [latent] @ weight [latent, d], a coder at a time: [coder, d] or, of
        one alone, [d]."""
        weight = self.among(weight)
        if self.blocks == 1:
            return totals @ weight
        return (totals.view(self.blocks, 1, -1) @ weight.unflatten(0, (self.blocks, -1)))[:, 0]


class SelectedLatents(torch.autograd.Function):
    """ReLU of chosen pre-activations, with a backward that costs what was chosen and not all latents."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, given: Tensor, *selections: Selection
    ) -> tuple[Tensor, ...]:
        """x: [token, d_in]; shift: what was taken from it [d_in], of several coders [coder, d_in], None for nothing; weight: [latent, d_in],
        bias: [latent]; given: x - shift; selections: of the pre-activations given @ weight.T + bias. Returns the activations of each. x learns
        of the first alone."""
        acts = [F.relu(s.preacts).to(weight.dtype) for s in selections]
        ctx.save_for_backward(given, weight, bias, *acts)
        ctx.selections = selections
        ctx.set_materialize_grads(False)
        return tuple(acts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        given, weight, bias, *acts = ctx.saved_tensors
        grad_x = grad_shift = grad_weight = grad_bias = None
        for i, (selection, fired, grad) in enumerate(zip(ctx.selections, acts, grads, strict=True)):
            if grad is None:
                continue
            grad = grad * (fired > 0)
            if i == 0 and ctx.needs_input_grad[0]:
                grad_x = selection.by.rows(grad, weight)
            totals = selection.by.totals(grad)
            if ctx.needs_input_grad[1]:  # the sum over tokens first: one product in place of one for each token
                own = selection.of_shifts(totals, weight)
                grad_shift = -own if grad_shift is None else grad_shift - own
            grad_bias = selection.added(grad_bias, totals, bias)
            grad_weight = selection.added(grad_weight, selection.by.over_tokens(grad, given.to(weight.dtype)), weight)
        return grad_x, grad_shift, grad_weight, grad_bias, None, *[None] * len(acts)


class SparseDecode(torch.autograd.Function):
    """Sums of the decoder's rows of chosen latents, all selections' gradients in one tensor."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, selections: Sequence[Selection], *acts: Tensor) -> tuple[Tensor, ...]:
        """weight: [latent, d]; acts: of each of `selections` -> [token, d] for each."""
        ctx.save_for_backward(weight, *acts)
        ctx.selections = selections
        ctx.set_materialize_grads(False)
        return tuple(s.by.rows(own, s.among(weight)) for s, own in zip(selections, acts, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        weight, *acts = ctx.saved_tensors
        grad_weight, grad_acts = None, []
        for selection, own, grad in zip(ctx.selections, acts, grads, strict=True):
            grad_acts.append(None if grad is None else selection.by.dots(grad.contiguous(), selection.among(weight)))
            if grad is not None:
                grad_weight = selection.added(grad_weight, selection.by.over_tokens(own, grad.contiguous()), weight)
        return grad_weight, None, *grad_acts


class SquaredError(torch.autograd.Function):
    """Sum of squared differences, with one pass back."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, target: Tensor) -> Tensor:
        """output: what is trained, [token, d] or of several coders [coder, token, d], target: what it should be -> a scalar, or [coder]."""
        error = target - output
        ctx.save_for_backward(error)
        return error.pow(2).sum((-2, -1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (error,) = ctx.saved_tensors
        return error * (-2 * grads[0])[..., None, None], None
