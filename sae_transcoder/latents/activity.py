"""How often latents fire and how strongly: counts, sums and histograms."""

import torch
from torch import Tensor

from sae_transcoder.latents.batch import Firings

LOWEST, HIGHEST, PER_OCTAVE = -12, 12, 4  # log2 of activations; four bins double the activation
HISTOGRAM_EDGES = [i / PER_OCTAVE for i in range(LOWEST * PER_OCTAVE, HIGHEST * PER_OCTAVE + 1)]
"""The edges of the histogram's bins, log2 of the activation; the outermost bins have no outer edge."""


class Activity:
    """`counts`: on how many tokens each latent fires by the bin of its activation [latent, bin]; `sums`: of its activations [latent]."""

    def __init__(self, num_latents: int, device: torch.device):
        self.inner_edges = torch.tensor(HISTOGRAM_EDGES[1:-1], dtype=torch.float64).exp2().float().to(device)
        self.counts = torch.zeros(num_latents, len(HISTOGRAM_EDGES) - 1, dtype=torch.int64, device=device)
        self.sums = torch.zeros(num_latents, dtype=torch.float64, device=device)

    def tensors(self) -> dict[str, Tensor]:
        """What it has counted."""
        return {"counts": self.counts, "sums": self.sums}

    def add(self, firings: Firings) -> None:
        """Adds a batch."""
        bins = torch.bucketize(firings.activations, self.inner_edges, right=True, out_int32=True)
        places = firings.rows * self.counts.shape[1] + bins
        self.counts.view(-1).add_(torch.bincount(places, minlength=self.counts.numel()))
        self.sums.index_add_(0, firings.rows, firings.activations.double())
