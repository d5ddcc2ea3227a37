"""The coders of a run before training."""

import copy
from collections.abc import Mapping

import torch
from sparsify import SparseCoderConfig

from sae_transcoder.coder.corrected_coder import CorrectedCoder, SparseCoder
from sae_transcoder.coder.names import coder_names
from sae_transcoder.config import Config


def new_coders(
    cfg: Config, coder_config: SparseCoderConfig, widths: Mapping[str, int], device: torch.device
) -> dict[str, SparseCoder]:
    """{name: coder} for each seed at each hookpoint, initialised from the seed; widths: {hookpoint: d}."""
    coder_class = CorrectedCoder if cfg.corrections else SparseCoder
    coders: dict[str, SparseCoder] = {}
    for hookpoint, width in widths.items():
        for seed, name in zip(cfg.init_seeds, coder_names(hookpoint, cfg.init_seeds), strict=True):
            torch.manual_seed(seed)
            # Each has a config of its own, since k changes in it.
            coders[name] = coder_class(width, copy.copy(coder_config), device, dtype=torch.float32)
    return coders
