"""The strongest contexts of each latent, one in a document.

Exact in one reading, whatever the order of the documents: only the strongest place of a document counts, and a document that falls out
can come back with a stronger one alone. Equal activations stand in the order of their places.
"""

import torch
from torch import Tensor

from sae_transcoder.latents.batch import Batch, Firings, first_of_each

NONE, ABSENT = -1, -2  # the document of an empty place in the table; of a place that a batch does not fill
COMPARED = 2**22  # documents that are compared at once


class Strongest:
    """The table of the strongest, falling, each [latent, rank]: `activations` (0: none), `documents`, `places`, and `windows`."""

    def __init__(self, num_latents: int, top: int, device: torch.device):
        shape = (num_latents, top)
        self.activations = torch.zeros(shape, device=device)
        self.documents = torch.full(shape, NONE, dtype=torch.int64, device=device)
        self.places = torch.zeros(shape, dtype=torch.int64, device=device)
        self.windows = torch.zeros(shape, dtype=torch.int64, device=device)

    def tensors(self) -> dict[str, Tensor]:
        """The table."""
        return {name: getattr(self, name) for name in ("activations", "documents", "places", "windows")}

    def entering(self, batch: Batch, firings: Firings) -> Firings:
        """The firings of a batch that may enter the table: the strongest of their latent and document, ordered by latent."""
        count = len(batch.documents)
        pairs = firings.rows * count + batch.document_of[firings.positions]
        # Few are stronger than the weakest of the table once some text is read.
        stronger = (firings.activations > self.activations[:, -1][firings.rows]).nonzero()[:, 0]
        pairs, firings = pairs[stronger], Firings(*(values[stronger] for values in firings))
        order = firings.activations.argsort(descending=True, stable=True)  # equal ones stay ordered by place
        order = order[pairs[order].argsort(stable=True)]
        best = order[first_of_each(pairs[order])]
        return Firings(*(values[best] for values in firings))

    def enter(self, batch: Batch, firings: Firings, windows: Tensor) -> None:
        """Enters what `entering` returned. windows: their numbers [entry]."""
        if not len(firings.rows):
            return
        rows, counts = firings.rows.unique_consecutive(return_counts=True)
        width = int(counts.max())
        starts = counts.cumsum(0) - counts
        columns = torch.arange(len(firings.rows), device=rows.device) - starts.repeat_interleave(counts)
        lines = torch.arange(len(rows), device=rows.device).repeat_interleave(counts)

        def table(values: Tensor, empty: int) -> Tensor:
            filled = values.new_full((len(rows), width), empty)
            filled[lines, columns] = values
            return filled

        new = {
            "activations": table(firings.activations, 0),
            "documents": table(batch.documents[batch.document_of[firings.positions]], ABSENT),
            "places": table(batch.first_place + firings.positions, 0),
            "windows": table(windows, 0),
        }
        step = max(1, COMPARED // (width * self.activations.shape[1]))
        for start in range(0, len(rows), step):
            self._merge(rows[start : start + step], {name: values[start : start + step] for name, values in new.items()})

    def _merge(self, rows: Tensor, new: dict[str, Tensor]) -> None:
        """Replaces these rows of the table by the strongest of them and of the new ones [row, candidate]."""
        old = {name: values[rows] for name, values in self.tensors().items()}
        same = old["documents"][:, :, None] == new["documents"][:, None, :]
        weaker = same & (new["activations"][:, None, :] <= old["activations"][:, :, None])
        new["activations"] = new["activations"].masked_fill(weaker.any(1), 0)
        old["activations"] = old["activations"].masked_fill((same & ~weaker).any(2), 0)
        both = {name: torch.cat([old[name], new[name]], 1) for name in old}
        order = both["places"].argsort(dim=1)
        order = order.gather(1, both["activations"].gather(1, order).argsort(dim=1, descending=True, stable=True))
        order = order[:, : self.activations.shape[1]]
        for name, values in self.tensors().items():
            values[rows] = both[name].gather(1, order)
        self.documents[rows] = self.documents[rows].masked_fill(self.activations[rows] == 0, NONE)
