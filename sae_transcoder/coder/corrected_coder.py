"""sparsify's coder, with what is wrong in eai-sparsify 1.3.3 corrected. tests/coder/test_corrected_coder.py holds, for each correction,
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

from functools import cache, partial, wraps
from typing import Any

import torch
from torch import Tensor

from sae_transcoder.coder.gradients import SelectedLatents, Selection, SparseDecode, SquaredError
from sae_transcoder.coder.row_sums import Every, LatentIndices, sums
from sae_transcoder.coder.selection import Choice, largest, largest_of_groups, select
from sae_transcoder.coder.sparsify_parts import ForwardOutput, SparseCoder, sparse_coder, utils

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


class CorrectedCoder(SparseCoder):
    """sparsify's coder: its parameters, initialisation, decoder and files; the forward with the corrections above."""

    def choose(self, preacts: Tensor) -> tuple[Tensor, Tensor]:
        """The latents that fire by `cfg.k` and `cfg.activation`, by their preacts [token, latent]."""
        return (largest_of_groups if self.cfg.activation == "groupmax" else largest)(preacts, self.cfg.k)

    @torch.no_grad()
    def selections(self, given: Tensor, dead: Tensor | None, usual: int) -> tuple[list[Selection], Tensor]:
        """The latents that fire for the inputs given [token, d_in], and their indices [token, k]; for AuxK, where there are `dead` ones [row],
        at most `usual` of them; for Multi-TopK."""
        dtype = product_dtype(given.device)
        choices: list[Choice] = [self.choose]
        if dead is not None:
            among = partial(torch.index_select, dim=1, index=dead)
            few = len(dead) <= usual
            choices.append((lambda preacts: (among(preacts),)) if few else (lambda preacts: largest(among(preacts), usual)))
        if self.cfg.multi_topk:  # k may be decaying
            choices.append(lambda preacts: largest(preacts, min(4 * self.cfg.k, self.num_latents)))
        weight, bias = self.encoder.weight, self.encoder.bias
        kept = select(given.to(dtype), weight.to(dtype), bias.to(dtype), choices)
        found = []
        for (preacts, *indices), rows in zip(kept, [None, dead, None] if dead is not None else [None, None], strict=False):
            if indices:
                chosen = LatentIndices.alike(indices[0], self.num_latents if rows is None else len(rows))
                found.append(Selection(preacts.flatten(), sums(chosen, dtype, auxk=rows is not None), rows))
            else:
                found.append(Selection(preacts[None], Every(dtype), rows))
        return found, kept[0][1]

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
        selections, indices = self.selections(given, dead, usual)
        wide = selections.pop() if self.cfg.multi_topk else None

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
        return ForwardOutput(sae_out, acts[0].view_as(indices), indices, fvu, auxk_loss, multi_topk_fvu)

    def skipped(self, x: Tensor) -> Tensor:
        """What the skip connection adds for inputs x [token, d_in]: [token, d_in]."""
        dtype = product_dtype(x.device)
        return x.to(dtype) @ self.W_skip.to(dtype).mT
