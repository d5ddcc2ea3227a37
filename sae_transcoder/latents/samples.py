"""A sample of the places where each latent fires, spread over its activations.

Activations fall into BINS equal bins of [0, 2^e), where 2^e is the power of two next above the latent's maximum. Of each bin the place with
the lowest priority is kept (batch.priorities), which is a random one. Where a larger activation needs a larger e, bins join. So the sample
does not depend on how the text is cut into batches, and each tenth of the activations below the maximum has at least two whole bins.
"""

import torch
from torch import Tensor

from sae_transcoder.latents.batch import Batch, Firings, first_of_each

BINS = 64
LOG_BINS = 6
EMPTY = torch.iinfo(torch.int64).max  # the priority of an empty bin
SMALLEST = -120  # the exponent before a latent fires


class Samples:
    """The sample, each [latent, bin]: `priorities`, `activations`, `places`, `windows`; and `exponents` [latent], the e of each latent."""

    def __init__(self, num_latents: int, device: torch.device):
        shape = (num_latents, BINS)
        self.priorities = torch.full(shape, EMPTY, dtype=torch.int64, device=device)
        self.activations = torch.zeros(shape, device=device)
        self.places = torch.zeros(shape, dtype=torch.int64, device=device)
        self.windows = torch.zeros(shape, dtype=torch.int64, device=device)
        self.exponents = torch.full((num_latents,), SMALLEST, dtype=torch.int32, device=device)

    def tensors(self) -> dict[str, Tensor]:
        """The sample."""
        return {name: getattr(self, name) for name in ("priorities", "activations", "places", "windows", "exponents")}

    def entering(self, batch: Batch, firings: Firings) -> Firings:
        """The firings of a batch that enter the sample, at most one in a bin."""
        self._widen(firings)
        bins = self._bins(firings)
        priorities = batch.priorities[firings.positions]
        entering = (priorities < self.priorities.view(-1)[bins]).nonzero()[:, 0]
        entering = entering[priorities[entering].argsort()]
        entering = entering[bins[entering].argsort(stable=True)]
        lowest = entering[first_of_each(bins[entering])]
        return Firings(*(values[lowest] for values in firings))

    def enter(self, batch: Batch, firings: Firings, windows: Tensor) -> None:
        """Enters what `entering` returned. windows: their numbers [entry]."""
        bins = self._bins(firings)
        self.priorities.view(-1)[bins] = batch.priorities[firings.positions]
        self.activations.view(-1)[bins] = firings.activations
        self.places.view(-1)[bins] = batch.first_place + firings.positions
        self.windows.view(-1)[bins] = windows

    def _bins(self, firings: Firings) -> Tensor:
        """The bin of each firing, in all latents' bins one after the other [entry]."""
        scales = ((127 + LOG_BINS - self.exponents) << 23).view(
            torch.float32
        )  # 2 ** (LOG_BINS - e) by its bits, so that products are exact
        return firings.rows * BINS + (firings.activations * scales[firings.rows]).long()

    def _widen(self, firings: Firings) -> None:
        """Raises the exponents to those of a batch, and joins bins."""
        exponents = firings.activations.frexp().exponent
        larger = (exponents > self.exponents[firings.rows]).nonzero()[:, 0]
        if not len(larger):
            return
        wanted = self.exponents.scatter_reduce(0, firings.rows[larger], exponents[larger], "amax")
        joins = (wanted - self.exponents).clamp(max=LOG_BINS)  # after LOG_BINS of them all lie in the first bin
        self.exponents = wanted
        for number in range(int(joins.max())):
            rows = (joins > number).nonzero()[:, 0]
            lower = self.priorities[rows].view(-1, BINS // 2, 2).argmin(2, keepdim=True)
            for name, empty in (("priorities", EMPTY), ("activations", 0), ("places", 0), ("windows", 0)):
                values = getattr(self, name)
                joined = torch.full_like(values[rows], empty)
                joined[:, : BINS // 2] = values[rows].view(-1, BINS // 2, 2).gather(2, lower)[:, :, 0]
                values[rows] = joined
