"""The sparse coder."""

from dataclasses import dataclass
from enum import StrEnum

from sae_transcoder.config.fields.metadata import bounded


class Activation(StrEnum):
    topk = "topk"
    groupmax = "groupmax"


@dataclass
class ArchitectureConfig:
    """The sparse coder (group `architecture`)."""

    expansion_factor: int = bounded(8, at_least=1, at_most=2**20)
    """Latents per dimension of the hookpoint, where `num_latents` is 0."""
    num_latents: int = bounded(0, at_least=0, at_most=2**31)
    """Number of latents; above 0 it takes the place of `expansion_factor`."""
    k: int = bounded(8, at_least=1)
    """Latents active per token."""
    activation: Activation = Activation.topk
    """topk: the k largest; groupmax: the largest of each of k equal groups of latents."""
    normalize_decoder: bool | None = None
    """Keep each decoder row at norm 1. null: true for an SAE, false for a transcoder, for which true is refused
    (its decoder starts at zero)."""
    multi_topk: bool = False
    """Add the FVU with 4k active latents, weighted 1/8, to the loss (Gao et al. 2024, appendix D)."""
    skip_connection: bool = False
    """Add a linear map from input to output, started at zero."""
