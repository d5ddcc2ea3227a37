"""A batch of text as the statistics of latents see it, and where a coder's latents fire in it."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sae_transcoder.data.sequences import Sequences


class Batch(NamedTuple):
    """Whole sequences. A position's *place* is its number in all of the text: sequence * length + position."""

    tokens: Tensor  # [sequence, position]
    first_place: int
    documents: Tensor  # the numbers of the documents in the batch [document]
    document_of: Tensor  # which of these each position is of [sequence * position]
    priorities: Tensor  # of the places, see `priorities` [sequence * position]

    @property
    def length(self) -> int:
        """Positions in a sequence."""
        return self.tokens.shape[1]


class Firings(NamedTuple):
    """Where latents fire in a batch, ordered by position: three tensors [entry]."""

    activations: Tensor  # above 0
    rows: Tensor  # the latent's row in the statistics
    positions: Tensor  # in the batch, sequence * length + position

    def where(self, mask: Tensor) -> "Firings":
        """The entries of a mask [entry]."""
        places = mask.nonzero()[:, 0]
        return Firings(*(values[places] for values in self))


def first_of_each(values: Tensor) -> Tensor:
    """Mask of the first of each run of equal values [entry]."""
    first = torch.ones_like(values, dtype=torch.bool)
    first[1:] = values[1:] != values[:-1]
    return first


def read_batch(sequences: Sequences, start: int, stop: int, device: torch.device) -> Batch:
    """The sequences from `start` to `stop` of the reading order."""
    numbers = np.arange(start, stop)
    tokens = torch.from_numpy(sequences.at(numbers))
    documents, document_of = np.unique(sequences.documents(numbers), return_inverse=True)
    first_place = start * tokens.shape[1]
    places = torch.arange(first_place, first_place + tokens.numel())
    on_device = (torch.from_numpy(documents), torch.from_numpy(document_of.reshape(-1)), priorities(places))
    return Batch(tokens.to(device), first_place, *(values.to(device) for values in on_device))


# Constants of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014), as signed numbers.
STEP, FIRST, SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def priorities(places: Tensor) -> Tensor:
    """A pseudo-random number of 64 bits, signed, for each place: SplitMix64, which gives different places different numbers."""

    def shifted(values: Tensor, bits: int) -> Tensor:
        return (values >> bits) & ((1 << (64 - bits)) - 1)

    mixed = places * STEP
    mixed = (mixed ^ shifted(mixed, 30)) * FIRST
    mixed = (mixed ^ shifted(mixed, 27)) * SECOND
    return mixed ^ shifted(mixed, 31)
