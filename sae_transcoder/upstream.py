"""sparsify's coder, with what is wrong in eai-sparsify 1.3.3 corrected. tests/test_upstream.py holds, for each correction,
a test of sparsify itself that fails once the correction may go.

1. The gradients of AuxK and of Multi-TopK never reach the encoder: `FusedEncoder.backward` (fused_encoder.py:59) ignores
   `grad_preacts`. Here every selection of latents has its own gradient.
2. A selected latent whose pre-activation is not above zero receives a gradient, though ReLU is flat there, and counts as fired.
   Here it does neither.
3. With `multi_topk` the returned `sae_out`, `latent_acts` and `latent_indices` are those of 4k latents (sparse_coder.py:262).
   Here they are those of k.
4. The encoder's backward materialises a tensor of [tokens, k, d_in] (fused_encoder.py:77). Here an inverted index sums the same
   terms: for each latent, the tokens that selected it.
5. sparsify takes its Triton decoder wherever Triton is installed (utils.py:90), on a CPU too, where it crashes. Here the tensors decide.
6. With `multi_topk` and `skip_connection` the reconstruction by 4k latents lacks the skip (sparse_coder.py:264). Here it has it.
"""

from contextlib import redirect_stdout
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
    fast = decoder.is_cuda and decoder.shape[1] % 8 == 0 and not torch.are_deterministic_algorithms_enabled() and TRITON
    return (utils.triton_decode if fast else utils.eager_decode)(indices, acts, decoder)


TRITON = utils.decoder_impl is utils.triton_decode
sparse_coder.decoder_impl = decode


class SelectedLatents(torch.autograd.Function):
    """ReLU of chosen pre-activations, with a backward that costs what was chosen and not all latents."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, preacts: Tensor, indices: Tensor) -> Tensor:
        """x: [token, d_in], weight: [latent, d_in], bias: [latent], preacts: x @ weight.T + bias [token, latent],
        indices: the chosen latents [token, chosen]. Returns their activations [token, chosen]."""
        acts = F.relu(preacts.gather(1, indices))
        ctx.save_for_backward(x, weight, acts, indices)
        return acts

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight, acts, indices = ctx.saved_tensors
        grad = (grads[0] * (acts > 0)).to(weight.dtype)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = F.embedding_bag(indices, weight, mode="sum", per_sample_weights=grad)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            flat = indices.flatten()
            order = flat.argsort(stable=True)  # the entries sorted by latent: an inverted index
            starts = torch.searchsorted(flat[order], torch.arange(len(weight), device=flat.device))
            sorted_grad = grad.flatten()[order]
            grad_weight = F.embedding_bag(
                order // indices.shape[1], x.to(weight.dtype), starts, mode="sum", per_sample_weights=sorted_grad
            )
            entries = torch.arange(len(order), device=order.device)
            grad_bias = F.embedding_bag(entries, sorted_grad[:, None], starts, mode="sum")[:, 0]
        return grad_x, grad_weight, grad_bias, None, None


class CorrectedCoder(SparseCoder):
    """sparsify's coder: its parameters, initialisation, decoder and files; the forward with the corrections above."""

    def choose(self, preacts: Tensor) -> Tensor:
        """The latents that fire by `cfg.k` and `cfg.activation`: indices [token, k] into preacts [token, latent]."""
        if self.cfg.activation == "groupmax":
            groups = preacts.unflatten(-1, (self.cfg.k, -1))
            first = torch.arange(0, preacts.shape[1], groups.shape[-1], device=preacts.device)
            return first + groups.argmax(dim=-1)
        return preacts.topk(self.cfg.k, dim=-1, sorted=False).indices

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
        given = x if self.cfg.transcode else x - self.b_dec
        with torch.no_grad():
            preacts = F.linear(given, self.encoder.weight, self.encoder.bias)

        # In an end-to-end run x depends on earlier coders, which this coder's own losses are not to train.
        local = given if not x.requires_grad else x.detach() if self.cfg.transcode else x.detach() - self.b_dec

        def latents(given: Tensor, indices: Tensor) -> Tensor:
            return SelectedLatents.apply(given, self.encoder.weight, self.encoder.bias, preacts, indices)

        indices = self.choose(preacts)
        acts = latents(given, indices)
        sae_out = self.decode(acts, indices)
        if self.W_skip is not None:
            skip = x.to(self.dtype) @ self.W_skip.mT
            sae_out = sae_out + skip
        error = y - sae_out
        if total_variance is None:
            total_variance = (y - y.mean(0)).pow(2).sum()
        fvu = error.pow(2).sum() / total_variance

        auxk_loss = multi_topk_fvu = sae_out.new_tensor(0.0)
        if dead_mask is not None and (dead := int(dead_mask.sum())) > 0:
            usual = y.shape[-1] // 2  # Gao et al. 2024, appendix B.1
            chosen = torch.where(dead_mask, preacts, -torch.inf).topk(min(usual, dead), sorted=False).indices
            # The decoder alone: the error already has b_dec taken out.
            predicted = decode(chosen, latents(local, chosen).to(self.dtype), self.W_dec.mT)
            auxk_loss = min(dead / usual, 1.0) * (predicted - error.detach()).pow(2).sum() / total_variance
        if self.cfg.multi_topk:
            chosen = preacts.topk(min(4 * self.cfg.k, self.num_latents), sorted=False).indices  # k may be decaying
            wide = self.decode(latents(local, chosen), chosen)
            if self.W_skip is not None:
                wide = wide + skip
            multi_topk_fvu = (y - wide).pow(2).sum() / total_variance
        return ForwardOutput(sae_out, acts, indices, fvu, auxk_loss, multi_topk_fvu)
