"""What a coder computes, with its gradients: activations of selected latents, their decoding, squared errors."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sae_transcoder.coder.sparse_products import SparseProducts


class Selection(NamedTuple):
    """Selected latents of one coder, or of several side by side, whose tokens and latents are concatenated."""

    preacts: Tensor  # of the selected latents, in the shape that `products` takes
    products: SparseProducts
    candidates: Tensor | None = None  # the latents [row] among which they were selected; None: all
    num_coders: int = 1
    parts: SparseProducts | None = None  # of the same entries, by the parts of a Matryoshka coder (matryoshka.py)

    @property
    def decoder_products(self) -> SparseProducts:
        """Those that decode: with a Matryoshka coder to [token * part, d]."""
        return self.products if self.parts is None else self.parts

    def candidate_rows(self, weight: Tensor) -> Tensor:
        """The rows of a weight or bias [latent, ...] that belong to the candidates."""
        return weight if self.candidates is None else weight[self.candidates]

    def add_gradient(self, total: Tensor | None, grad: Tensor, like: Tensor) -> Tensor:
        """`total`, shaped as `like` [latent, ...] (None: zeros), with the gradient of the candidates' rows added in place."""
        if self.candidates is None:
            return grad if total is None else total.add_(grad)
        return (torch.zeros_like(like) if total is None else total).index_add_(0, self.candidates, grad)

    def shift_gradient(self, totals: Tensor, weight: Tensor) -> Tensor:
        """The gradient of what all inputs of a coder have in common: totals [latent] @ weight [latent, d], [d] or, of several coders, [coder, d]."""
        weight = self.candidate_rows(weight)
        if self.num_coders == 1:
            return totals @ weight
        return (totals.view(self.num_coders, 1, -1) @ weight.unflatten(0, (self.num_coders, -1)))[:, 0]


class SelectedLatents(torch.autograd.Function):
    """ReLU of selected pre-activations; the backward's cost grows with the selected latents, not with all."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, centered_input: Tensor, *selections: Selection
    ) -> tuple[Tensor, ...]:
        """Returns the activations of each selection; only the first one's reach x in the backward.

        x: [token, d_in]; shift: what is subtracted from x [d_in], of several coders [coder, d_in], None for nothing; weight: [latent, d_in];
        bias: [latent]; centered_input: x - shift; selections: of the pre-activations centered_input @ weight.T + bias.
        """
        acts = [F.relu(s.preacts).to(weight.dtype) for s in selections]
        ctx.save_for_backward(centered_input, weight, bias, *acts)
        ctx.selections = selections
        ctx.set_materialize_grads(False)
        return tuple(acts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        centered_input, weight, bias, *all_acts = ctx.saved_tensors
        grad_x = grad_shift = grad_weight = grad_bias = None
        for i, (selection, acts, grad) in enumerate(zip(ctx.selections, all_acts, grads, strict=True)):
            if grad is None:
                continue
            grad = grad * (acts > 0)
            products = selection.products
            if i == 0 and ctx.needs_input_grad[0]:
                grad_x = products.matmul(grad, weight)
            totals = products.sum_over_tokens(grad)
            if ctx.needs_input_grad[1]:  # the sum over tokens first: one product in place of one for each token
                of_shift = selection.shift_gradient(totals, weight)
                grad_shift = -of_shift if grad_shift is None else grad_shift - of_shift
            grad_bias = selection.add_gradient(grad_bias, totals, bias)
            grad_weight = selection.add_gradient(
                grad_weight, products.transposed_matmul(grad, centered_input.to(weight.dtype)), weight
            )
        return grad_x, grad_shift, grad_weight, grad_bias, None, *[None] * len(all_acts)


class SparseDecode(torch.autograd.Function):
    """Decodes each selection; the gradients of all are added up in one tensor."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, selections: Sequence[Selection], *all_acts: Tensor) -> tuple[Tensor, ...]:
        """weight: [latent, d]; all_acts: the activations of each selection -> [token, d] for each, [token * part, d] where it has parts."""
        ctx.save_for_backward(weight, *all_acts)
        ctx.selections = selections
        ctx.set_materialize_grads(False)
        return tuple(
            s.decoder_products.matmul(acts, s.candidate_rows(weight)) for s, acts in zip(selections, all_acts, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        weight, *all_acts = ctx.saved_tensors
        grad_weight, grad_acts = None, []
        for selection, acts, grad in zip(ctx.selections, all_acts, grads, strict=True):
            products = selection.decoder_products
            grad_acts.append(None if grad is None else products.sampled_matmul(grad.contiguous(), selection.candidate_rows(weight)))
            if grad is not None:
                grad_weight = selection.add_gradient(grad_weight, products.transposed_matmul(acts, grad.contiguous()), weight)
        return grad_weight, None, *grad_acts


class SquaredError(torch.autograd.Function):
    """The sum of squared differences; the backward reads them once."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, target: Tensor) -> Tensor:
        """output and target: [token, d], or of several coders [coder, token, d] -> a scalar, or [coder]. Only `output` gets a gradient."""
        error = target - output
        ctx.save_for_backward(error)
        return error.pow(2).sum((-2, -1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (error,) = ctx.saved_tensors
        return error * (-2 * grads[0])[..., None, None], None
