"""Coders of equal settings and shape on the same inputs, computed as one. For small batches: there a GPU waits for the next kernel to be
launched, and this launches each once for all coders."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sae_transcoder.coder.corrected_coder import CorrectedCoder, product_dtype
from sae_transcoder.coder.gradients import SelectedLatents, Selection, SparseDecode, SquaredError
from sae_transcoder.coder.row_sums import Every, LatentIndices, sums
from sae_transcoder.coder.selection import largest
from sae_transcoder.coder.sparsify_parts import ForwardOutput, SparseCoder


def shape(coder: SparseCoder) -> Hashable:
    """The same for coders that can be computed as one; None for one that cannot."""
    cfg = coder.cfg
    if not isinstance(coder, CorrectedCoder) or cfg.multi_topk or cfg.skip_connection:
        return None
    return coder.d_in, coder.num_latents, cfg.k, cfg.activation, cfg.transcode


def forward_together(
    coders: Sequence[CorrectedCoder], x: Tensor, y: Tensor, dead: Sequence[Tensor | None], total_variance: Tensor
) -> list[ForwardOutput]:
    """What each coder's forward gives, of equal `shape`, for the same inputs x [token, d_in] and targets y [token, d]; dead: for each the latents
    that its AuxK may use [row], None for no AuxK. Tokens and latents of the coders follow each other."""
    count, first, usual = len(coders), coders[0], y.shape[-1] // 2
    weight, bias = torch.cat([c.encoder.weight for c in coders]), torch.cat([c.encoder.bias for c in coders])
    decoder, b_dec = torch.cat([c.W_dec for c in coders if c.W_dec is not None]), torch.stack([c.b_dec for c in coders])
    inputs = x.expand(count, *x.shape)
    given = (inputs if first.cfg.transcode else inputs - b_dec[:, None]).detach()
    selections, indices = selected(first, given, weight, bias, dead, usual)
    shift = None if first.cfg.transcode else b_dec
    acts = SelectedLatents.apply(inputs.flatten(0, 1), shift, weight, bias, given.flatten(0, 1), *selections)
    decoded, *predicted = (out.unflatten(0, (count, -1)) for out in SparseDecode.apply(decoder, selections, *acts))
    sae_out = decoded + b_dec[:, None]
    fvu = SquaredError.apply(sae_out, y.expand_as(sae_out)) / total_variance
    auxk = torch.zeros_like(fvu)
    if predicted:
        auxk = SquaredError.apply(predicted[0], (y - sae_out).detach()) / total_variance
    shares = [0.0 if own is None else min(len(own) / usual, 1.0) for own in dead]
    own_acts = acts[0].view_as(indices)
    none = fvu.new_zeros(())
    return [ForwardOutput(sae_out[i], own_acts[i], indices[i], fvu[i], shares[i] * auxk[i], none) for i in range(count)]


@torch.no_grad()
def selected(
    first: CorrectedCoder, given: Tensor, weight: Tensor, bias: Tensor, dead: Sequence[Tensor | None], usual: int
) -> tuple[list[Selection], Tensor]:
    """The latents that fire for the inputs given [coder, token, d_in], and their indices [coder, token, k], counted within each coder; for
    AuxK at most `usual` of the `dead` ones. weight: [coder * latent, d_in]; bias: [coder * latent]."""
    count, dtype = len(given), product_dtype(given.device)
    preacts = torch.baddbmm(
        bias.to(dtype).view(count, 1, -1), given.to(dtype), weight.to(dtype).unflatten(0, (count, -1)).mT
    )  # [coder, token, latent]
    found = []

    def chosen(values: Tensor, own: Tensor, latents: int, rows: Tensor | None) -> None:
        own = own.unflatten(0, (count, -1)) + firsts(count, latents, given.device)[:, None]
        by = sums(LatentIndices.alike(own.flatten(0, 1), count * latents), dtype, count, auxk=rows is not None)
        found.append(Selection(values.flatten(), by, rows, count))

    values, indices = first.choose(preacts.flatten(0, 1))
    chosen(values, indices, first.num_latents, None)
    if any(own is not None for own in dead):
        none = torch.zeros(0, dtype=torch.long, device=given.device)
        padded = pad_sequence([none if own is None else own for own in dead], batch_first=True, padding_value=-1)  # [coder, row]
        within = padded.clamp(min=0)
        among = preacts.gather(2, within[:, None].expand(-1, given.shape[1], -1)).masked_fill(padded[:, None] < 0, -torch.inf)
        rows = (within + firsts(count, first.num_latents, given.device)).flatten()
        if padded.shape[1] <= usual:
            found.append(Selection(among, Every(dtype, count), rows, count))
        else:
            chosen(*largest(among.flatten(0, 1), usual), padded.shape[1], rows)
    return found, indices.unflatten(0, (count, -1))


def firsts(count: int, latents: int, device: torch.device) -> Tensor:
    """Where each coder's latents begin, [coder, 1]."""
    return torch.arange(0, count * latents, latents, device=device)[:, None]
