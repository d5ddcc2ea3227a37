"""sparsify's coder, with what is wrong in eai-sparsify 1.3.3 corrected. tests/test_upstream.py holds, for each correction,
a test of sparsify itself that fails once the correction may go.

1. The gradients of AuxK and of Multi-TopK never reach the encoder: `FusedEncoder.backward` (fused_encoder.py:59) ignores
   `grad_preacts`. Here every selection of latents has its own gradient.
2. A selected latent whose pre-activation is not above zero receives a gradient, though ReLU is flat there, and counts as fired.
   Here it does neither.
3. With `multi_topk` the returned `sae_out`, `latent_acts` and `latent_indices` are those of 4k latents (sparse_coder.py:262).
   Here they are those of k.
4. The encoder's backward materialises a tensor of [tokens, k, d_in] (fused_encoder.py:77), and the decoder's sorts once more. Here one
   inverted index serves both: for each latent, the tokens that selected it. Nor are pre-activations kept whole: of a piece of them the
   chosen ones are taken.
5. sparsify takes its Triton decoder wherever Triton is installed (utils.py:90), on a CPU too, where it crashes. Here the tensors decide.
6. With `multi_topk` and `skip_connection` the reconstruction by 4k latents lacks the skip (sparse_coder.py:264). Here it has it.
"""

from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import cached_property
from io import StringIO
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

with redirect_stdout(StringIO()):  # it prints that Triton is missing, on every machine without a GPU
    import sparsify.sparse_coder as sparse_coder
    import sparsify.utils as utils
    from sparsify.sparse_coder import ForwardOutput, SparseCoder


def decode(indices: Tensor, acts: Tensor, decoder: Tensor) -> Tensor:
    """Sum of the decoder's columns of the chosen latents: indices and acts [token, k], decoder [d, latent] -> [token, d].

    Triton's kernel needs a GPU and a multiple of 8 latents, and adds up in an order that changes from run to run.
    """
    return (utils.triton_decode if by_triton(decoder) else utils.eager_decode)(indices, acts, decoder)


def by_triton(decoder: Tensor) -> bool:
    """Whether Triton's kernel decodes with this decoder [d, latent]."""
    return decoder.is_cuda and decoder.shape[1] % 8 == 0 and not torch.are_deterministic_algorithms_enabled() and TRITON


TRITON = utils.decoder_impl is utils.triton_decode
sparse_coder.decoder_impl = decode


class Chosen:
    """The latents chosen for each token, `indices` [token, k] of so many `latents`; and which tokens chose each latent, for backward
    passes: sums over tokens then are sums over rows, in an order that does not change."""

    def __init__(self, indices: Tensor, latents: int):
        self.indices, self.latents = indices, latents

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor]:
        """An inverted index: the entries of `indices`, counted row by row, sorted by latent [token * k], and where each latent's begin."""
        latents, order = self.indices.flatten().sort(stable=True)
        return order, torch.searchsorted(latents, torch.arange(self.latents, device=order.device))

    def sum_of_rows(self, rows: Tensor, weights: Tensor) -> Tensor:
        """For each latent the sum of `rows` [token, d] of the tokens that chose it, weighted by `weights` [token, k]: [latent, d]."""
        order, starts = self.by_latent
        return F.embedding_bag(
            order // self.indices.shape[1], rows, starts, mode="sum", per_sample_weights=weights.flatten()[order]
        )

    def sums(self, weights: Tensor) -> Tensor:
        """For each latent the sum of `weights` [token, k] where it was chosen: [latent]."""
        order, starts = self.by_latent
        return F.embedding_bag(order, weights.reshape(-1, 1), starts, mode="sum")[:, 0]


Selection = tuple[Tensor, Tensor]  # pre-activations of chosen latents and which latents these are, both [token, k]


def largest(preacts: Tensor, k: int) -> Selection:
    """The k largest of each row of `preacts` [token, latent], in no order.

    torch's top-k on a CPU moves whole rows about. There, where it pays, the columns of a row's k largest maxima are looked at alone: what is
    among the k largest is the maximum of its column or below it, so no other column has any.
    """
    latents, group = preacts.shape[1], 8
    if preacts.is_cuda or k < 2 * group or latents < 2 * group * k or latents % group:
        return preacts.topk(k, dim=-1, sorted=False)
    width = latents // group
    columns = preacts.unflatten(1, (group, width)).amax(1).topk(k, dim=-1, sorted=False).indices
    candidates = (columns[:, None] + torch.arange(0, latents, width)[:, None]).flatten(1)
    values, places = preacts.gather(1, candidates).topk(k, dim=-1, sorted=False)
    return values, candidates.gather(1, places)


def select(given: Tensor, weight: Tensor, bias: Tensor, choices: Sequence[Callable[[Tensor], Selection]]) -> list[Selection]:
    """What each of `choices` takes of the pre-activations given @ weight.T + bias, of given [token, d_in], weight [latent, d_in].

    A piece of tokens at a time: on a CPU its pre-activations stay in the cache, and need no fresh pages, as large tensors do each time.
    """
    size = max(1, PIECE[given.device.type] // len(weight))
    pieces = [[choose(preacts) for choose in choices] for piece in given.split(size) for preacts in [F.linear(piece, weight, bias)]]
    return [tuple(torch.cat(parts) for parts in zip(*own, strict=True)) for own in zip(*pieces, strict=True)]  # type: ignore[misc]


PIECE = {"cpu": 2**21, "cuda": 2**28}  # pre-activations in a piece


class SelectedLatents(torch.autograd.Function):
    """ReLU of chosen pre-activations, with a backward that costs what was chosen and not all latents."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, given: Tensor, preacts: Tensor, chosen: Chosen
    ) -> Tensor:
        """x: [token, d_in]; shift: what was taken from it [d_in], None for nothing; weight: [latent, d_in], bias: [latent]; given: x - shift;
        preacts: given @ weight.T + bias at the chosen latents [token, k]. Returns their activations [token, k]."""
        acts = F.relu(preacts)
        ctx.save_for_backward(given, weight, acts)
        ctx.chosen = chosen
        return acts

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        given, weight, acts = ctx.saved_tensors
        chosen, needed = ctx.chosen, ctx.needs_input_grad
        grad = (grads[0] * (acts > 0)).to(weight.dtype)
        grad_x = grad_shift = grad_weight = grad_bias = None
        if needed[0]:
            grad_x = F.embedding_bag(chosen.indices, weight, mode="sum", per_sample_weights=grad)
        if needed[1] or needed[3]:
            grad_bias = chosen.sums(grad)
        if needed[1]:  # the sum over tokens first: one product in place of one for each token
            grad_shift = -(grad_bias @ weight)
        if needed[2]:
            grad_weight = chosen.sum_of_rows(given.to(weight.dtype), grad)
        return grad_x, grad_shift, grad_weight, grad_bias, None, None, None


class SparseDecode(torch.autograd.Function):
    """Sum of the decoder's rows of the chosen latents, with sparsify's forward and the inverted index in the backward."""

    @staticmethod
    def forward(ctx: Any, acts: Tensor, weight: Tensor, chosen: Chosen) -> Tensor:
        """acts: [token, k]; weight: [latent, d] -> [token, d]."""
        with torch.enable_grad():  # torch's own backward for the activations; its one for the weights sorts again
            own = acts.detach().requires_grad_()
            out = F.embedding_bag(chosen.indices, weight.detach(), mode="sum", per_sample_weights=own)
        ctx.own, ctx.out, ctx.chosen = own, out, chosen
        return out.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        grad_acts = torch.autograd.grad(ctx.out, ctx.own, grad, retain_graph=True)[0] if ctx.needs_input_grad[0] else None
        grad_weight = ctx.chosen.sum_of_rows(grad.contiguous(), ctx.own.detach()) if ctx.needs_input_grad[1] else None
        return grad_acts, grad_weight, None


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

    def choose(self, preacts: Tensor) -> Selection:
        """The latents that fire by `cfg.k` and `cfg.activation`, by their preacts [token, latent]."""
        if self.cfg.activation == "groupmax":
            groups = preacts.unflatten(-1, (self.cfg.k, -1))
            first = torch.arange(0, preacts.shape[1], groups.shape[-1], device=preacts.device)
            values, places = groups.max(dim=-1)
            return values, first + places
        return largest(preacts, self.cfg.k)

    def rows(self, acts: Tensor, chosen: Chosen) -> Tensor:
        """Sum of the decoder's rows of the chosen latents: acts [token, k] -> [token, d]."""
        assert self.W_dec is not None
        if by_triton(self.W_dec.mT):
            return utils.triton_decode(chosen.indices, acts.to(self.dtype), self.W_dec.mT)
        return SparseDecode.apply(acts.to(self.dtype), self.W_dec, chosen)

    @torch.autocast("cuda", dtype=torch.bfloat16, enabled=torch.cuda.is_available() and torch.cuda.is_bf16_supported())
    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        dead_mask: Tensor | None = None,
        total_variance: Tensor | None = None,
    ) -> ForwardOutput:
        """The losses of sparsify's forward (sparse_coder.py:198).

        x: [token, d_in]; y: the target [token, d_in], x itself where it is None; dead_mask: [latent], the latents that AuxK may use;
        total_variance: what squared errors are divided by, that of y where it is None. latent_acts holds zeros at chosen latents
        whose pre-activation is not positive.
        """
        y = x if y is None else y
        shift = None if self.cfg.transcode else self.b_dec
        weight, bias = self.encoder.weight, self.encoder.bias
        dead = 0 if dead_mask is None else int(dead_mask.sum())
        usual = y.shape[-1] // 2  # latents that AuxK takes: Gao et al. 2024, appendix B.1
        choices = [self.choose]
        if dead_mask is not None and dead > 0:
            choices.append(lambda preacts: largest(torch.where(dead_mask, preacts, -torch.inf), min(usual, dead)))
        if self.cfg.multi_topk:  # k may be decaying
            choices.append(lambda preacts: largest(preacts, min(4 * self.cfg.k, self.num_latents)))
        with torch.no_grad():
            given = x if shift is None else x - shift
            selections = iter(select(given, weight, bias, choices))

        def latents(x: Tensor) -> tuple[Tensor, Chosen]:
            preacts, indices = next(selections)
            chosen = Chosen(indices, self.num_latents)
            return SelectedLatents.apply(x, shift, weight, bias, given, preacts, chosen), chosen

        acts, chosen = latents(x)
        sae_out = self.rows(acts, chosen) + self.b_dec
        if self.W_skip is not None:
            skip = x.to(self.dtype) @ self.W_skip.mT
            sae_out = sae_out + skip
        if total_variance is None:
            total_variance = (y - y.mean(0)).pow(2).sum()
        fvu = SquaredError.apply(sae_out, y) / total_variance

        # In an end-to-end run x depends on earlier coders, which this coder's own losses are not to train.
        local = x.detach()
        auxk_loss = multi_topk_fvu = sae_out.new_tensor(0.0)
        if dead > 0:
            # The decoder alone: the error already has b_dec taken out.
            predicted = self.rows(*latents(local))
            error = (y - sae_out).detach()
            auxk_loss = min(dead / usual, 1.0) * SquaredError.apply(predicted, error) / total_variance
        if self.cfg.multi_topk:
            wide = self.rows(*latents(local)) + self.b_dec
            if self.W_skip is not None:
                wide = wide + skip
            multi_topk_fvu = SquaredError.apply(wide, y) / total_variance
        return ForwardOutput(sae_out, acts, chosen.indices, fvu, auxk_loss, multi_topk_fvu)
