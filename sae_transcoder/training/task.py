"""A coder's work on a batch."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from sae_transcoder.coder.batch_top_k_coder import BatchTopKCoder
from sae_transcoder.coder.corrected_coder import SparseCoder
from sae_transcoder.distributed import Ranks


class Task(NamedTuple):
    """One coder's work on a batch."""

    name: str
    coder: SparseCoder
    x: Tensor  # its inputs [token, d_in]
    y: Tensor  # and targets [token, d], this rank's
    num_tokens: int  # of all ranks
    variance: Tensor  # what squared errors are divided by
    dead: dict[str, Tensor | Sequence[Tensor]]  # which latents AuxK may use, as the coder's forward takes them

    def micro_batches(self, count: int, ranks: Ranks) -> Iterator[tuple[Tensor, Tensor, dict[str, Any]]]:
        """Inputs and targets in so many parts, none where there is no token, and what the coder's forward takes beside them.

        ranks: those that share the batch, all of which call it.
        """
        xs, ys = (self.x.chunk(count), self.y.chunk(count)) if len(self.y) else ((), ())
        if not isinstance(self.coder, BatchTopKCoder):
            return ((x, y, self.dead) for x, y in zip(xs, ys, strict=True))
        selected = self.coder.select_from_batch(self.x, self.num_tokens, ranks)  # before the batch is cut into parts
        pieces = selected.pieces([len(x) for x in xs])
        return ((x, y, self.dead | {"selected": piece}) for x, y, piece in zip(xs, ys, pieces, strict=True))
