"""Computes several coders of equal settings and shape on the same inputs as one. For small batches: there a GPU waits for the next kernel to
be launched, and this launches each once for all coders."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sae_transcoder.coder.autograd_functions import SelectedLatents, Selection, SparseDecode, SquaredError
from sae_transcoder.coder.corrected_coder import CoderOutput, CorrectedCoder, max_auxk_latents, product_dtype
from sae_transcoder.coder.latent_selection import top_k
from sae_transcoder.coder.sparse_products import AllLatents, LatentIndices, fastest_products
from sae_transcoder.coder.sparsify_parts import SparseCoder


def batch_key(coder: SparseCoder) -> Hashable:
    """The same for coders that can be computed as one; None for one that cannot."""
    cfg = coder.cfg
    if type(coder) is not CorrectedCoder or coder.matryoshka_widths is not None or cfg.multi_topk or cfg.skip_connection:
        return None
    return coder.d_in, coder.num_latents, cfg.k, cfg.activation, cfg.transcode


def batched_forward(
    coders: Sequence[CorrectedCoder], x: Tensor, y: Tensor, dead: Sequence[Tensor | None], total_variance: Tensor
) -> list[CoderOutput]:
    """The output of each coder's forward for the same inputs x [token, d_in] and targets y [token, d]; the coders have an equal `batch_key`.

    dead: for each coder the latents that its AuxK may use [row], None for no AuxK. tokens and latents of the coders are concatenated.
    """
    num_coders, first, max_auxk = len(coders), coders[0], max_auxk_latents(y.shape[-1])
    weight, bias = torch.cat([c.encoder.weight for c in coders]), torch.cat([c.encoder.bias for c in coders])
    decoder, b_dec = torch.cat([c.W_dec for c in coders if c.W_dec is not None]), torch.stack([c.b_dec for c in coders])
    inputs = x.expand(num_coders, *x.shape)
    centered_inputs = (inputs if first.cfg.transcode else inputs - b_dec[:, None]).detach()
    selections, indices = batched_selections(first, centered_inputs, weight, bias, dead, max_auxk)
    shift = None if first.cfg.transcode else b_dec
    acts = SelectedLatents.apply(inputs.flatten(0, 1), shift, weight, bias, centered_inputs.flatten(0, 1), *selections)
    decoded, *auxk_decoded = (out.unflatten(0, (num_coders, -1)) for out in SparseDecode.apply(decoder, selections, *acts))
    sae_out = decoded + b_dec[:, None]
    fvu = SquaredError.apply(sae_out, y.expand_as(sae_out)) / total_variance
    auxk = torch.zeros_like(fvu)
    if auxk_decoded:
        auxk = SquaredError.apply(auxk_decoded[0], (y - sae_out).detach()) / total_variance
    shares = [0.0 if rows is None else min(len(rows) / max_auxk, 1.0) for rows in dead]
    latent_acts = acts[0].view_as(indices)
    no_loss = fvu.new_zeros(())
    return [CoderOutput(sae_out[i], latent_acts[i], indices[i], fvu[i], shares[i] * auxk[i], no_loss) for i in range(num_coders)]


@torch.no_grad()
def batched_selections(
    first: CorrectedCoder, centered_inputs: Tensor, weight: Tensor, bias: Tensor, dead: Sequence[Tensor | None], max_auxk: int
) -> tuple[list[Selection], Tensor]:
    """The latents that fire, and for AuxK at most `max_auxk` of the `dead` ones; and the indices of those that fire [coder, token, k],
    counted within each coder.

    first: the first coder; centered_inputs: [coder, token, d_in]; weight: [coder * latent, d_in]; bias: [coder * latent].
    """
    num_coders, device = len(centered_inputs), centered_inputs.device
    dtype = product_dtype(device)
    preacts = torch.baddbmm(
        bias.to(dtype).view(num_coders, 1, -1), centered_inputs.to(dtype), weight.to(dtype).unflatten(0, (num_coders, -1)).mT
    )  # [coder, token, latent]

    def selection(values: Tensor, indices: Tensor, num_latents: int, candidates: Tensor | None) -> Selection:
        indices = indices.unflatten(0, (num_coders, -1)) + latent_offsets(num_coders, num_latents, device)[:, None]
        entries = LatentIndices.from_top_k(indices.flatten(0, 1), num_coders * num_latents)
        products = fastest_products(entries, dtype, num_coders, many=candidates is not None)
        return Selection(values.flatten(), products, candidates, num_coders)

    values, indices = first.select_latents(preacts.flatten(0, 1))
    selections = [selection(values, indices, first.num_latents, None)]
    if any(rows is not None for rows in dead):
        no_rows = torch.zeros(0, dtype=torch.long, device=device)
        padded = pad_sequence(
            [no_rows if rows is None else rows for rows in dead], batch_first=True, padding_value=-1
        )  # [coder, row]
        rows = padded.clamp(min=0)
        of_dead = preacts.gather(2, rows[:, None].expand(-1, centered_inputs.shape[1], -1))
        of_dead = of_dead.masked_fill(padded[:, None] < 0, -torch.inf)
        candidates = (rows + latent_offsets(num_coders, first.num_latents, device)).flatten()
        if padded.shape[1] <= max_auxk:
            selections.append(Selection(of_dead, AllLatents(dtype, num_coders), candidates, num_coders))
        else:
            selections.append(selection(*top_k(of_dead.flatten(0, 1), max_auxk), padded.shape[1], candidates))
    return selections, indices.unflatten(0, (num_coders, -1))


def latent_offsets(num_coders: int, num_latents: int, device: torch.device) -> Tensor:
    """The first latent of each coder, [coder, 1]."""
    return torch.arange(0, num_coders * num_latents, num_latents, device=device)[:, None]
