"""sparsify's coder, with what is wrong in eai-sparsify 1.3.3 corrected. tests/test_upstream.py holds, for each correction,
a test of sparsify itself that fails once the correction may go.

1. The gradients of AuxK and of Multi-TopK never reach the encoder: `FusedEncoder.backward` (fused_encoder.py:59) ignores
   `grad_preacts`. Here every selection of latents has its own gradient.
2. A selected latent whose pre-activation is not above zero receives a gradient, though ReLU is flat there, and counts as fired.
   Here it does neither.
3. With `multi_topk` the returned `sae_out`, `latent_acts` and `latent_indices` are those of 4k latents (sparse_coder.py:262).
   Here they are those of k.
4. The encoder's backward materialises a tensor of [tokens, k, d_in] (fused_encoder.py:77), and the decoder's sorts once more. Here
   row_sums.py has one way of working with the chosen latents for both. Nor are pre-activations kept whole: of a piece of them the
   chosen ones are taken.
5. sparsify takes its Triton decoder wherever Triton is installed (utils.py:90), on a CPU too, where it crashes. On a GPU its kernels are
   compiled anew for each number of tokens and each k (xformers.py:17), and their backward misreads a gradient that is not contiguous.
   Here PyTorch's own embedding_bag decodes, as where Triton is not installed.
6. With `multi_topk` and `skip_connection` the reconstruction by 4k latents lacks the skip (sparse_coder.py:264). Here it has it.
7. AuxK asks the device how many latents are dead (sparse_coder.py:224), for each coder of each batch, and takes a top-k over all latents
   of which the dead ones alone are not minus infinity. Here the dead rows are given (dead_latents.py) and multiplied by themselves.
8. Importing sparsify asks the driver whether the GPU has bfloat16 (sparse_coder.py:208). Here (sparsify_parts.py) the coder asks when it runs.
"""

from collections.abc import Sequence
from functools import cache, partial, wraps
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sae_transcoder.row_sums import Chosen, Every, Sums, sums
from sae_transcoder.selection import Choice, largest, largest_of_groups, select
from sae_transcoder.sparsify_parts import ForwardOutput, SparseCoder, sparse_coder, utils

sparse_coder.decoder_impl = utils.eager_decode


@cache
def product_dtype(device: torch.device) -> torch.dtype:
    """The number format of coders' products: bfloat16 on a GPU that has it, as sparsify's, else float32."""
    has = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if has else torch.float32


sparsifys_forward = SparseCoder.forward.__wrapped__  # type: ignore[attr-defined] # without autocast, about which it asked at its import


@wraps(sparsifys_forward)
def in_bfloat16(self: SparseCoder, x: Tensor, *arguments: Any, **named: Any) -> ForwardOutput:
    """sparsify's forward, in bfloat16 on a GPU that has it."""
    dtype = product_dtype(x.device)
    with torch.autocast("cuda", dtype=dtype, enabled=dtype == torch.bfloat16):
        return sparsifys_forward(self, x, *arguments, **named)


SparseCoder.forward = in_bfloat16


class Selection(NamedTuple):
    """Latents that fire for tokens, by one way of choosing them."""

    preacts: Tensor  # of the chosen latents, in the shape that `by` takes
    by: Sums
    indices: Tensor | None  # of the chosen latents [token, k], None: all are
    rows: Tensor | None = None  # the latents among which they were chosen; None: all

    def among(self, weight: Tensor) -> Tensor:
        """The rows of a weight or bias [latent, ...] of the latents among which they were chosen."""
        return weight if self.rows is None else weight[self.rows]

    def added(self, whole: Tensor | None, own: Tensor, like: Tensor) -> Tensor:
        """`whole`, shaped as `like` [latent, ...] (None: zeros), with the gradient `own` of these latents' rows added in place."""
        if self.rows is None:
            return own if whole is None else whole.add_(own)
        return (torch.zeros_like(like) if whole is None else whole).index_add_(0, self.rows, own)


class SelectedLatents(torch.autograd.Function):
    """ReLU of chosen pre-activations, with a backward that costs what was chosen and not all latents."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, given: Tensor, *selections: Selection
    ) -> tuple[Tensor, ...]:
        """x: [token, d_in]; shift: what was taken from it [d_in], None for nothing; weight: [latent, d_in], bias: [latent]; given: x - shift;
        selections: of the pre-activations given @ weight.T + bias. Returns the activations of each. x learns of the first alone."""
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
                own = totals @ selection.among(weight)
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
        """output: what is trained, target: what it should be, both [token, d] -> a scalar."""
        error = target - output
        ctx.save_for_backward(error)
        return error.pow(2).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (error,) = ctx.saved_tensors
        return error * (-2 * grads[0]), None


class CorrectedCoder(SparseCoder):
    """sparsify's coder: its parameters, initialisation, decoder and files; the forward with the corrections above."""

    def choose(self, preacts: Tensor) -> tuple[Tensor, Tensor]:
        """The latents that fire by `cfg.k` and `cfg.activation`, by their preacts [token, latent]."""
        return (largest_of_groups if self.cfg.activation == "groupmax" else largest)(preacts, self.cfg.k)

    @torch.no_grad()
    def selections(self, given: Tensor, dead: Tensor | None, usual: int) -> list[Selection]:
        """The latents that fire for the inputs given [token, d_in]; for AuxK, where there are `dead` ones [row], at most `usual` of them; for
        Multi-TopK."""
        dtype = product_dtype(given.device)
        choices: list[Choice] = [self.choose]
        if dead is not None:
            few = len(dead) <= usual
            among = partial(torch.index_select, dim=1, index=dead)
            choices.append((lambda preacts: (among(preacts),)) if few else (lambda preacts: largest(among(preacts), usual)))
        if self.cfg.multi_topk:  # k may be decaying
            choices.append(lambda preacts: largest(preacts, min(4 * self.cfg.k, self.num_latents)))
        weight, bias = self.encoder.weight, self.encoder.bias
        kept = select(given.to(dtype), weight.to(dtype), bias.to(dtype), choices)
        found = []
        for i, (preacts, *indices) in enumerate(kept):
            rows = dead if i == 1 else None
            if indices:
                chosen = Chosen.alike(indices[0], self.num_latents if rows is None else len(rows))
                found.append(Selection(preacts.flatten(), sums(chosen, dtype), indices[0], rows))
            else:
                found.append(Selection(preacts, Every(dtype), None, rows))
        return found

    def forward(
        self, x: Tensor, y: Tensor | None = None, *, dead: Tensor | None = None, total_variance: Tensor | None = None
    ) -> ForwardOutput:
        """The losses of sparsify's forward (sparse_coder.py:198).

        x: [token, d_in]; y: the target [token, d_in], x itself where it is None; dead: which latents AuxK may use [row], None for no AuxK;
        total_variance: what squared errors are divided by, that of y where it is None. latent_acts holds zeros at chosen latents
        whose pre-activation is not positive.
        """
        assert self.W_dec is not None
        y = x if y is None else y
        shift = None if self.cfg.transcode else self.b_dec
        given = (x if shift is None else x - shift).detach()
        usual = y.shape[-1] // 2  # latents that AuxK takes: Gao et al. 2024, appendix B.1
        selections = self.selections(given, dead, usual)
        wide = selections.pop() if self.cfg.multi_topk else None
        main = selections[0]

        def decoded(x: Tensor, *selections: Selection) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            acts = SelectedLatents.apply(x, shift, self.encoder.weight, self.encoder.bias, given, *selections)
            return acts, SparseDecode.apply(self.W_dec, selections, *acts)

        acts, (reconstructed, *predicted) = decoded(x, *selections)
        skip = None if self.W_skip is None else self.skipped(x)
        sae_out = reconstructed + self.b_dec if skip is None else reconstructed + self.b_dec + skip
        if total_variance is None:
            total_variance = (y - y.mean(0)).pow(2).sum()
        fvu = SquaredError.apply(sae_out, y) / total_variance
        auxk_loss = multi_topk_fvu = sae_out.new_zeros(())
        if dead is not None:
            # The decoder alone: the error already has b_dec taken out.
            error = (y - sae_out).detach()
            auxk_loss = min(len(dead) / usual, 1.0) * SquaredError.apply(predicted[0], error) / total_variance
        if wide is not None:
            # In an end-to-end run x depends on earlier coders, which this coder's own losses are not to train.
            _, (by_4k,) = decoded(x.detach(), wide)
            skip = self.skipped(x.detach()) if skip is not None and x.requires_grad else skip
            output = by_4k + self.b_dec if skip is None else by_4k + self.b_dec + skip
            multi_topk_fvu = SquaredError.apply(output, y) / total_variance
        assert main.indices is not None
        return ForwardOutput(sae_out, acts[0].view_as(main.indices), main.indices, fvu, auxk_loss, multi_topk_fvu)

    def skipped(self, x: Tensor) -> Tensor:
        """What the skip connection adds for inputs x [token, d_in]: [token, d_in]."""
        dtype = product_dtype(x.device)
        return x.to(dtype) @ self.W_skip.to(dtype).mT
