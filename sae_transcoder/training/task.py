"""A coder's work on a batch."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from sae_transcoder.coder.corrected_coder import SparseCoder


class Task(NamedTuple):
    """One coder's work on a batch."""

    name: str
    coder: SparseCoder
    x: Tensor  # its inputs [token, d_in]
    y: Tensor  # and targets [token, d], this rank's
    variance: Tensor  # what squared errors are divided by
    dead: dict[str, Tensor]  # which latents AuxK may use, as the coder's forward takes them

    def micro_batches(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets in so many parts, none where there is no token."""
        return zip(self.x.chunk(count), self.y.chunk(count), strict=True) if len(self.y) else iter(())
