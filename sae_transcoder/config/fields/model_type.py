"""What is trained: an SAE or a transcoder, and on which modules."""

from dataclasses import dataclass
from enum import StrEnum

from omegaconf import MISSING

from sae_transcoder.config.fields.metadata import bounded


class ModelType(StrEnum):
    sae = "sae"
    transcoder = "transcoder"


class Site(StrEnum):
    residual = "residual"
    mlp = "mlp"
    attention = "attention"


@dataclass
class ModelTypeConfig:
    """What is trained (group `model_type`)."""

    model_type: ModelType = MISSING
    """sae: a module's output is reconstructed from itself; transcoder: from the module's input."""
    site: Site | None = None
    """The module in each layer that `layers` and `layer_stride` choose: residual (the layer's output), mlp or attention.
    null: residual for an SAE, mlp for a transcoder."""
    layers: list[int] | None = None
    """Layer indices, counted from 0. null: every `layer_stride`-th layer."""
    layer_stride: int = bounded(1, at_least=1)
    """Take every n-th layer, from layer 0; with `hookpoints`, every n-th module that they match."""
    hookpoints: list[str] | None = None
    """Module names or patterns inside the base model, in place of `layers` and `site`: `*`, `?` and `[0-5]` stay within one
    part of a dotted name, `**` crosses dots. `layers.*` is every layer, `h.*.mlp.act` every MLP activation of GPT-2."""
