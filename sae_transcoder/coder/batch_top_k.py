"""BatchTopK: the k x tokens largest pre-activations of a batch are selected, so that tokens share latents as they need them.

The pre-activations of a batch are never held at once: those above a lower bound are collected chunk by chunk, and the batch's cut, the
smallest that is selected, is found among them. The cut of the batch before tells the bound; where too few lie above it, it is lowered and the
collection done again. With several ranks the cut is that of the whole batch, found from histograms that are summed over the ranks.
Source: Bussmann, Leask and Nanda 2024, arXiv 2412.06410.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sae_transcoder.coder.entries import Entries, entries_above, joined
from sae_transcoder.distributed import ALONE, Ranks

# Where the collection starts, as shares of the last batch's cut, the next one where too few lie above.
BOUNDS = (0.9, 0.6, 0.3, 0.0)
SAMPLE = 2**18  # pre-activations from which the first batch's cut is estimated
DIGITS = (
    (20, 11),
    (10, 10),
    (0, 10),
)  # (lowest bit, bits) of a positive float32 number, read as an integer, from its highest bit on


class Cut(NamedTuple):
    """Where the selected values end."""

    bits: Tensor  # the smallest selected value, read as an integer; a scalar
    ties: Tensor  # how many values equal to it are selected; a scalar

    @property
    def value(self) -> Tensor:
        """The smallest selected value, a scalar."""
        return self.bits.view(torch.float32)


def find_cut(values: Tensor, num_selected: int, ranks: Ranks = ALONE) -> Cut:
    """The cut of the `num_selected` largest of all ranks' positive values [entry], float32, of which there are at least so many.

    Positive numbers are ordered as the integers that their bits spell: the cut's digits are found one after the other, from histograms.
    """
    bits = values.view(torch.int32)
    left = torch.full(
        (), num_selected, device=values.device
    )  # values at and above the cut among those that share its digits so far
    prefix = torch.zeros((), dtype=torch.int32, device=values.device)
    among = torch.ones_like(bits)
    for low, width in DIGITS:
        digits = (bits >> low) & (2**width - 1)
        histogram = torch.zeros(2**width, dtype=torch.int64, device=values.device).scatter_add_(0, digits.long(), among.long())
        from_top = ranks.all_reduce(histogram).flip(0).cumsum(0)  # how many have the highest digit, the two highest, ...
        place = torch.searchsorted(from_top, left)
        digit = (2**width - 1 - place).int()
        left = left - from_top.index_select(0, place[None])[0] + histogram.index_select(0, digit[None])[0]
        prefix = prefix | (digit << low)
        among = among * (digits == digit)
    return Cut(prefix, left)


def strongest(entries: Entries, num_selected: int, ranks: Ranks = ALONE) -> tuple[Entries, Tensor]:
    """The entries of the `num_selected` largest values of all ranks, and the smallest of these. Of equal values at the cut the first are
    taken, by rank and token. Waits for a GPU, whose entries' number is not known here."""
    cut = find_cut(entries.preacts, num_selected, ranks)
    bits = entries.preacts.view(torch.int32)
    is_tie = bits == cut.bits
    ties_by_rank = ranks.all_gather_tensor(is_tie.sum()[None])
    before = ties_by_rank[: ranks.rank].sum()
    taken = is_tie & (is_tie.cumsum(0) + before <= cut.ties)
    return entries.where((bits > cut.bits) | taken), cut.value


def collect(inputs: Tensor, weight: Tensor, bias: Tensor, bound: Tensor, at_most: int) -> Entries:
    """Entries of the pre-activations inputs [token, d_in] @ weight.T [latent, d_in] + bias that lie above `bound`, a scalar, 0 at least.

    Where they are more than twice `at_most`, weaker ones are left out, of which none is among the `at_most` largest.
    """
    parts: list[Entries] = []
    for entries in entries_above(inputs, weight, bias, bound):
        parts.append(entries)
        if sum(len(part.tokens) for part in parts) > 2 * at_most:
            parts = [strongest(joined(parts), at_most)[0]]
    return joined(parts)


def batch_top_k(
    inputs: Tensor, weight: Tensor, bias: Tensor, num_selected: int, last_cut: Tensor | None, ranks: Ranks = ALONE
) -> tuple[Entries, Tensor | None]:
    """This rank's entries of the `num_selected` largest positive pre-activations of all ranks' inputs, and the smallest of them, a float32
    scalar. Where fewer are positive, all of these. None where none is.

    inputs: [token, d_in]; weight: [latent, d_in]; last_cut: the cut of the batch before, None for the first. All ranks call it.
    """
    if last_cut is None:
        sample = inputs[: max(1, SAMPLE // len(weight))]
        num_tokens, num_sampled = ranks.sum_integers([len(inputs), len(sample)])
        last_cut = inputs.new_zeros((), dtype=torch.float32)
        if num_sampled < num_tokens:
            _, cut = batch_top_k(sample, weight, bias, num_selected * num_sampled // num_tokens, last_cut, ranks)
            last_cut = last_cut if cut is None else cut
    for share in BOUNDS:
        entries = collect(inputs, weight, bias, share * last_cut, num_selected)
        (count,) = ranks.sum_integers([len(entries.tokens)])
        if count >= num_selected:
            break
    if not count:
        return entries, None
    return strongest(entries, min(num_selected, count), ranks)
