"""sparsify's coder, with the faults of eai-sparsify 1.3.3 corrected. For each correction, tests/coder/test_corrected_coder.py has a test
that fails once sparsify fixes the fault.

1. The gradients of AuxK and of Multi-TopK never reach the encoder: `FusedEncoder.backward` (fused_encoder.py:59) ignores
   `grad_preacts`. Here every selection of latents has its own gradient.
2. A selected latent whose pre-activation is not above zero receives a gradient, though ReLU is flat there, and counts as fired.
   Here it does neither.
3. With `multi_topk` the returned `sae_out`, `latent_acts` and `latent_indices` are those of 4k latents (sparse_coder.py:262).
   Here they are those of k.
4. The encoder's backward materialises a tensor of [tokens, k, d_in] (fused_encoder.py:77), and the decoder's sorts once more. Here both
   use sparse_products.py. Pre-activations are computed in chunks, and only selected ones are kept.
5. sparsify takes its Triton decoder wherever Triton is installed (utils.py:90), on a CPU too, where it crashes. On a GPU its kernels are
   compiled anew for each number of tokens and each k (xformers.py:17), and their backward misreads a gradient that is not contiguous.
   Here PyTorch's own embedding_bag decodes, as where Triton is not installed.
6. With `multi_topk` and `skip_connection` the reconstruction by 4k latents lacks the skip (sparse_coder.py:264). Here it has it.
7. AuxK asks the device how many latents are dead (sparse_coder.py:224), for each coder of each batch, and takes a top-k over all latents,
   of which only the dead ones are not minus infinity. Here the caller passes the dead latents' indices, and only their pre-activations
   are searched.
8. Importing sparsify asks the driver whether the GPU has bfloat16 (sparse_coder.py:208). Here (sparsify_parts.py) the coder asks when it runs.
"""

from functools import cache, wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_transcoder.coder.autograd_functions import SelectedLatents, Selection, SparseDecode, SquaredError
from sae_transcoder.coder.latent_selection import Selector, group_max, select_preacts, top_k
from sae_transcoder.coder.sparse_products import AllLatents, LatentIndices, fastest_products
from sae_transcoder.coder.sparsify_parts import ForwardOutput, SparseCoder, sparse_coder, utils

sparse_coder.decoder_impl = utils.eager_decode


@cache
def product_dtype(device: torch.device) -> torch.dtype:
    """The number format of coders' products: bfloat16 on a GPU that has it, as sparsify's, else float32."""
    has_bfloat16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if has_bfloat16 else torch.float32


sparsify_forward = SparseCoder.forward.__wrapped__  # type: ignore[attr-defined] # without the autocast that its import decided on


@wraps(sparsify_forward)
def forward_in_bfloat16(self: SparseCoder, x: Tensor, *args: Any, **kwargs: Any) -> ForwardOutput:
    """sparsify's forward, in bfloat16 on a GPU that has it."""
    dtype = product_dtype(x.device)
    with torch.autocast("cuda", dtype=dtype, enabled=dtype == torch.bfloat16):
        return sparsify_forward(self, x, *args, **kwargs)


SparseCoder.forward = forward_in_bfloat16


def max_auxk_latents(width: int) -> int:
    """How many dead latents AuxK uses at most for each token: Gao et al. 2024, appendix B.1."""
    return width // 2


class Selections(NamedTuple):
    """The latents that each loss of a coder uses."""

    main: Selection
    indices: Tensor  # of `main`, [token, k]
    auxk: Selection | None
    multi_topk: Selection | None


class CorrectedCoder(SparseCoder):
    """sparsify's coder: its parameters, initialisation, decoder and files; the forward with the corrections above."""

    def select_latents(self, preacts: Tensor) -> tuple[Tensor, Tensor]:
        """The values and indices of the latents that fire by `cfg.k` and `cfg.activation`, from their preacts [token, latent]."""
        return (group_max if self.cfg.activation == "groupmax" else top_k)(preacts, self.cfg.k)

    @torch.no_grad()
    def selections(self, centered_input: Tensor, dead: Tensor | None, max_auxk: int) -> Selections:
        """Selects latents for centered_input [token, d_in]: for AuxK at most `max_auxk` of the `dead` ones [row], None for no AuxK."""
        dtype = product_dtype(centered_input.device)
        selectors: dict[str, Selector] = {"main": self.select_latents}
        if dead is not None:

            def select_dead(preacts: Tensor) -> tuple[Tensor, ...]:
                of_dead = torch.index_select(preacts, dim=1, index=dead)
                return (of_dead,) if len(dead) <= max_auxk else top_k(of_dead, max_auxk)

            selectors["auxk"] = select_dead
        if self.cfg.multi_topk:  # k may be decaying
            selectors["multi_topk"] = lambda preacts: top_k(preacts, min(4 * self.cfg.k, self.num_latents))
        weight, bias = self.encoder.weight.to(dtype), self.encoder.bias.to(dtype)
        kept = dict(zip(selectors, select_preacts(centered_input.to(dtype), weight, bias, [*selectors.values()]), strict=True))

        def selection(preacts: Tensor, indices: Tensor | None = None, *, candidates: Tensor | None = None) -> Selection:
            if indices is None:
                return Selection(preacts[None], AllLatents(dtype), candidates)
            entries = LatentIndices.from_top_k(indices, self.num_latents if candidates is None else len(candidates))
            return Selection(preacts.flatten(), fastest_products(entries, dtype, auxk=candidates is not None), candidates)

        return Selections(
            main=selection(*kept["main"]),
            indices=kept["main"][1],
            auxk=selection(*kept["auxk"], candidates=dead) if "auxk" in kept else None,
            multi_topk=selection(*kept["multi_topk"]) if "multi_topk" in kept else None,
        )

    def forward(
        self, x: Tensor, y: Tensor | None = None, *, dead: Tensor | None = None, total_variance: Tensor | None = None
    ) -> ForwardOutput:
        """The losses of sparsify's forward (sparse_coder.py:198).

        x: [token, d_in]; y: the target [token, d_in], None for x itself; dead: the latents that AuxK may use [row], None for no AuxK;
        total_variance: what squared errors are divided by, None for that of y. latent_acts holds zeros at selected latents
        whose pre-activation is not positive.
        """
        y = x if y is None else y
        centered_input = (x if self.cfg.transcode else x - self.b_dec).detach()
        selections = self.selections(centered_input, dead, max_auxk_latents(y.shape[-1]))
        used = [selections.main] if selections.auxk is None else [selections.main, selections.auxk]
        acts, decoded = self.encode_and_decode(x, centered_input, *used)
        skip = None if self.W_skip is None else self.skip(x)
        sae_out = self.add_bias_and_skip(decoded[0], skip)
        if total_variance is None:
            total_variance = (y - y.mean(0)).pow(2).sum()
        fvu = SquaredError.apply(sae_out, y) / total_variance
        auxk_loss = multi_topk_fvu = sae_out.new_zeros(())
        if dead is not None:
            # Without b_dec and skip: the error has them taken out already.
            error = (y - sae_out).detach()
            auxk_loss = min(len(dead) / max_auxk_latents(y.shape[-1]), 1.0) * SquaredError.apply(decoded[1], error) / total_variance
        if selections.multi_topk is not None:
            wide_out = self.multi_topk_output(x, centered_input, selections.multi_topk, skip)
            multi_topk_fvu = SquaredError.apply(wide_out, y) / total_variance
        return ForwardOutput(sae_out, acts[0].view_as(selections.indices), selections.indices, fvu, auxk_loss, multi_topk_fvu)

    def multi_topk_output(self, x: Tensor, centered_input: Tensor, selection: Selection, skip: Tensor | None) -> Tensor:
        """The reconstruction by the 4k latents of Multi-TopK, [token, d_in]; skip: what the skip connection adds."""
        # In an end-to-end run x depends on earlier coders, which this coder's own losses are not to train.
        _, (decoded,) = self.encode_and_decode(x.detach(), centered_input, selection)
        skip = self.skip(x.detach()) if skip is not None and x.requires_grad else skip
        return self.add_bias_and_skip(decoded, skip)

    def encode_and_decode(
        self, x: Tensor, centered_input: Tensor, *selections: Selection
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The activations of each selection, and what they decode to [token, d_in], without bias and skip."""
        assert self.W_dec is not None
        shift = None if self.cfg.transcode else self.b_dec
        acts = SelectedLatents.apply(x, shift, self.encoder.weight, self.encoder.bias, centered_input, *selections)
        return acts, SparseDecode.apply(self.W_dec, selections, *acts)

    def add_bias_and_skip(self, decoded: Tensor, skip: Tensor | None) -> Tensor:
        """The reconstruction [token, d_in]; skip: what the skip connection adds, None for nothing."""
        return decoded + self.b_dec if skip is None else decoded + self.b_dec + skip

    def skip(self, x: Tensor) -> Tensor:
        """What the skip connection adds for inputs x [token, d_in]: [token, d_in]."""
        dtype = product_dtype(x.device)
        return x.to(dtype) @ self.W_skip.to(dtype).mT
