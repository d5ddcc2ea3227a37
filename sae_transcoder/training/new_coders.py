"""The coders of a run before training."""

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from sae_transcoder.coder.batch_top_k_coder import BatchTopKCoder
from sae_transcoder.coder.corrected_coder import CorrectedCoder, SparseCoder
from sae_transcoder.coder.jump_relu_coder import JumpReLUCoder
from sae_transcoder.coder.names import coder_names
from sae_transcoder.coder.sparsify_parts import SparseCoderConfig
from sae_transcoder.coder.stored_coders import THRESHOLDS, WEIGHTS
from sae_transcoder.config import Activation, Config, matryoshka_widths, threshold_beta
from sae_transcoder.config.run_length import RunLength


def coder_class(cfg: Config, width: int, length: RunLength) -> partial[SparseCoder]:
    """The kind of coder that the settings ask for on a hookpoint of this width, with what its constructor needs of them."""
    if not cfg.corrections:
        return partial(SparseCoder)
    if cfg.activation == Activation.jumprelu:
        return partial(
            JumpReLUCoder, bandwidth=cfg.jumprelu_bandwidth, init_threshold=cfg.jumprelu_init_threshold, loss=cfg.jumprelu_loss
        )
    nested: dict[str, Any] = {"matryoshka_widths": matryoshka_widths(cfg, width), "auxk_per_level": cfg.auxk_per_level}
    if cfg.activation == Activation.batchtopk:
        return partial(BatchTopKCoder, threshold_beta=threshold_beta(cfg, length.batches), **nested)
    return partial(CorrectedCoder, **nested)


def new_coders(
    cfg: Config, coder_config: SparseCoderConfig, widths: Mapping[str, int], length: RunLength, device: torch.device
) -> dict[str, SparseCoder]:
    """{name: coder} for each seed at each hookpoint, initialised from the seed; widths: {hookpoint: d}."""
    coders: dict[str, SparseCoder] = {}
    for hookpoint, width in widths.items():
        make = coder_class(cfg, width, length)
        for seed, name in zip(cfg.init_seeds, coder_names(hookpoint, cfg.init_seeds), strict=True):
            torch.manual_seed(seed)
            # Each has a config of its own, since k changes in it.
            coders[name] = make(width, copy.copy(coder_config), device, dtype=torch.float32)
            if cfg.decoder_init_norm is not None:
                set_decoder(coders[name], cfg.decoder_init_norm)
    return coders


@torch.no_grad()
def set_decoder(coder: SparseCoder, norm: float) -> None:
    """Sets each decoder row to the direction of its encoder row, with this norm."""
    assert coder.W_dec is not None
    coder.W_dec.copy_(norm * torch.nn.functional.normalize(coder.encoder.weight, dim=1))


@torch.no_grad()
def load_start(coder: SparseCoder, folder: Path) -> bool:
    """Loads the tensors of the coder stored in `folder`, and for JumpReLU its thresholds where it has any; returns whether it loaded these."""
    weights = load_file(folder / WEIGHTS, str(coder.device))
    coder.load_state_dict(weights, strict=False)  # which are those of sparsify's coder: finetune.py has checked them
    if not isinstance(coder, JumpReLUCoder) or not (folder / THRESHOLDS).is_file():
        return False
    coder.threshold.copy_(load_file(folder / THRESHOLDS, str(coder.device))["threshold"])
    return True
