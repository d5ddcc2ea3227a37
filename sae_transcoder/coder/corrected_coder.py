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

from collections.abc import Sequence
from functools import cache, partial, wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_transcoder.coder.autograd_functions import SelectedLatents, Selection, SparseDecode, SquaredError
from sae_transcoder.coder.jump_relu import Near
from sae_transcoder.coder.latent_selection import Selector, group_max, select_preacts, top_k
from sae_transcoder.coder.matryoshka import NestedErrors, part_of_latents, parts_of
from sae_transcoder.coder.sparse_products import AllLatents, LatentIndices, fastest_products
from sae_transcoder.coder.sparsify_parts import ForwardOutput, SparseCoder, SparseCoderConfig, sparse_coder, utils
from sae_transcoder.coder.trained_coder import TrainedCoder

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


class CoderOutput(NamedTuple):
    """What a coder's forward returns: the fields of sparsify's ForwardOutput, and what other kinds of coders add."""

    sae_out: Tensor  # [token, d]
    latent_acts: Tensor  # of selected latents: [token, k], or [entry] where tokens have differing numbers of them
    latent_indices: Tensor  # of the same shape
    fvu: Tensor
    auxk_loss: Tensor
    multi_topk_fvu: Tensor
    level_fvus: Tensor | None = None  # [dictionary], of a Matryoshka coder
    sparsity: Tensor | None = None  # JumpReLU's sparsity loss, summed over tokens


def kept_of_dead(of_dead: Tensor, max_auxk: int) -> tuple[Tensor, ...]:
    """What AuxK keeps of the pre-activations of dead latents [token, row]: all, or values and indices of the `max_auxk` largest."""
    return (of_dead,) if of_dead.shape[1] <= max_auxk else top_k(of_dead, max_auxk)


def select_dead(preacts: Tensor, dead: Tensor, max_auxk: int) -> tuple[Tensor, ...]:
    """`kept_of_dead` of the preacts [token, latent] of all latents, of which `dead` [row] are dead."""
    return kept_of_dead(torch.index_select(preacts, dim=1, index=dead), max_auxk)


class Selections(NamedTuple):
    """The latents that each loss of a coder uses."""

    main: Selection
    indices: Tensor  # of `main`, [token, k] or [entry]
    auxk: list[Selection]  # one for each group of dead latents
    multi_topk: Selection | None = None
    near: Near | None = None  # entries that give JumpReLU's thresholds gradients


class CorrectedCoder(SparseCoder):
    """sparsify's coder: its parameters, initialisation, decoder and files; the forward with the corrections above. Its latents are those of the
    largest pre-activations of each token (topk, groupmax)."""

    def __init__(
        self,
        d_in: int,
        cfg: SparseCoderConfig,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        *,
        matryoshka_widths: Sequence[int] | None = None,
        auxk_per_level: bool = False,
    ):
        """matryoshka_widths: latents of each nested dictionary, None for one dictionary; auxk_per_level: whether AuxK's groups are those of
        the dictionaries, each of which predicts what its dictionary leaves unexplained."""
        super().__init__(d_in, cfg, device, dtype)
        self.matryoshka_widths, self.auxk_per_level = matryoshka_widths, auxk_per_level
        if matryoshka_widths is not None:
            self.register_buffer("part_of_latent", part_of_latents(matryoshka_widths, self.device), persistent=False)

    def trained(self) -> TrainedCoder:
        """The coder as it is published; its tensors are this one's."""
        return TrainedCoder.of(self, matryoshka_widths=self.matryoshka_widths)

    def select_latents(self, preacts: Tensor) -> tuple[Tensor, Tensor]:
        """The values and indices of the latents that fire by `cfg.k` and `cfg.activation`, from their preacts [token, latent]."""
        values, indices = (group_max if self.cfg.activation == "groupmax" else top_k)(preacts, self.cfg.k)
        if self.matryoshka_widths is None:
            return values, indices
        indices, order = indices.sort(-1)  # a dictionary's latents side by side
        return values.gather(-1, order), indices

    @torch.no_grad()
    def selections(self, centered_input: Tensor, dead: Sequence[Tensor], max_auxk: int) -> Selections:
        """Selects latents for centered_input [token, d_in]: for AuxK at most `max_auxk` of each group of dead ones [row]."""
        selectors: list[Selector] = [self.select_latents]
        selectors += [partial(select_dead, dead=group, max_auxk=max_auxk) for group in dead]
        if self.cfg.multi_topk:  # k may be decaying
            selectors.append(lambda preacts: top_k(preacts, min(4 * self.cfg.k, self.num_latents)))
        (values, indices), *others = select_preacts(*self.product_inputs(centered_input), selectors)
        selected = LatentIndices.from_top_k(indices, self.num_latents)
        return Selections(
            main=self.main_selection(values.flatten(), selected),
            indices=indices,
            auxk=[self.auxk_selection(kept, group) for kept, group in zip(others, dead, strict=False)],
            multi_topk=self.selection(*others[-1]) if self.cfg.multi_topk else None,
        )

    def product_inputs(self, centered_input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What pre-activations are computed from, in the number format of products: input, encoder weight and bias."""
        dtype = product_dtype(centered_input.device)
        return centered_input.to(dtype), self.encoder.weight.to(dtype), self.encoder.bias.to(dtype)

    def main_selection(self, preacts: Tensor, indices: LatentIndices, *, may_be_dense: bool = False) -> Selection:
        """The selection of latents that fire: preacts [entry]; may_be_dense: whether a large share of all latents may be selected."""
        dtype = product_dtype(preacts.device)
        parts = None
        if self.matryoshka_widths is not None:
            parts = fastest_products(parts_of(indices, self.part_of_latent, len(self.matryoshka_widths)), dtype)
        return Selection(preacts, fastest_products(indices, dtype, many=may_be_dense), parts=parts)

    def auxk_selections(
        self, inputs: Tensor, weight: Tensor, bias: Tensor, dead: Sequence[Tensor], max_auxk: int
    ) -> list[Selection]:
        """AuxK's selections for groups of dead latents [row], whose pre-activations alone are computed, from the `product_inputs`."""
        selector = partial(kept_of_dead, max_auxk=max_auxk)
        kept = [select_preacts(inputs, weight[group], bias[group], [selector])[0] for group in dead]
        return [self.auxk_selection(tensors, group) for tensors, group in zip(kept, dead, strict=True)]

    def auxk_selection(self, kept: Sequence[Tensor], dead: Tensor) -> Selection:
        """AuxK's selection in a group of dead latents [row], from its `kept_of_dead`."""
        if len(kept) == 1:
            return Selection(kept[0][None], AllLatents(product_dtype(dead.device)), dead)
        return self.selection(kept[0], kept[1], candidates=dead)

    def selection(self, preacts: Tensor, indices: Tensor, candidates: Tensor | None = None) -> Selection:
        """A selection of equally many latents for each token: preacts and indices [token, k], among candidates [row], None for all."""
        entries = LatentIndices.from_top_k(indices, self.num_latents if candidates is None else len(candidates))
        products = fastest_products(entries, product_dtype(preacts.device), many=candidates is not None)
        return Selection(preacts.flatten(), products, candidates)

    def forward(
        self, x: Tensor, y: Tensor | None = None, *, dead: Sequence[Tensor] = (), total_variance: Tensor | None = None, **given: Any
    ) -> CoderOutput:
        """The losses of sparsify's forward (sparse_coder.py:198).

        x: [token, d_in]; y: the target [token, d_in], None for x itself; dead: the latents that AuxK may use [row], with `auxk_per_level` one
        such tensor for each dictionary, empty for no AuxK; total_variance: what squared errors are divided by, None for that of y; given:
        what `selections` takes beside. latent_acts holds zeros at selected latents that do not fire.
        """
        y = x if y is None else y
        if total_variance is None:
            total_variance = (y - y.mean(0)).pow(2).sum()
        centered_input = (x if self.cfg.transcode else x - self.b_dec).detach()
        levels = [level for level, group in enumerate(dead) if len(group)]
        dead, max_auxk = [dead[level] for level in levels], max_auxk_latents(y.shape[-1])
        selections = self.selections(centered_input, dead, max_auxk, **given)
        acts, decoded = self.encode_and_decode(x, centered_input, selections.main, *selections.auxk)
        skip = None if self.W_skip is None else self.skip(x)
        main_decoded = self.train_thresholds(decoded[0], selections)
        out, squared_error, level_fvus, errors = self.reconstruct(main_decoded, skip, y)
        auxk_loss = multi_topk_fvu = out.new_zeros(())
        for level, group, auxk_out in zip(levels, dead, decoded[1:], strict=True):
            # Without b_dec and skip: the error has them taken out already.
            error = (y - out).detach() if errors is None else errors[:, level if self.auxk_per_level else -1]
            auxk_loss = auxk_loss + min(len(group) / max_auxk, 1.0) * SquaredError.apply(auxk_out, error) / total_variance
        if selections.multi_topk is not None:
            wide_out = self.multi_topk_output(x, centered_input, selections.multi_topk, skip)
            multi_topk_fvu = SquaredError.apply(wide_out, y) / total_variance
        return CoderOutput(
            out,
            acts[0].view_as(selections.indices),
            selections.indices,
            squared_error / total_variance,
            auxk_loss,
            multi_topk_fvu,
            None if level_fvus is None else level_fvus / total_variance,
            self.sparsity(acts[0], selections),
        )

    def reconstruct(self, decoded: Tensor, skip: Tensor | None, y: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """The reconstruction of y [token, d], its squared error, and of a Matryoshka coder those of all dictionaries [dictionary] and their
        errors [token, dictionary, d]; decoded: [token, d], or [token * part, d]; skip: what the skip connection adds."""
        if self.matryoshka_widths is None:
            out = self.add_bias_and_skip(decoded, skip)
            return out, SquaredError.apply(out, y), None, None
        parts = decoded.unflatten(0, (-1, len(self.matryoshka_widths)))
        base = self.b_dec if skip is None else self.b_dec + skip
        out, squared_errors, errors = NestedErrors.apply(parts, base, y)
        return out, squared_errors[-1], squared_errors, errors

    def train_thresholds(self, decoded: Tensor, selections: Selections) -> Tensor:
        """What the latents that fire decode to, [token, d], whose gradient also reaches thresholds that are trained."""
        return decoded

    def sparsity(self, acts: Tensor, selections: Selections) -> Tensor | None:
        """The loss that makes latents fire less, summed over tokens; None for a coder whose activation function limits their number."""
        return None

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
