"""Copies of a run's coders as they are published."""

import copy

from sae_transcoder.coder.activation_scales import to_plain
from sae_transcoder.coder.build_optimizers import averaged_weights
from sae_transcoder.coder.corrected_coder import CorrectedCoder, SparseCoder
from sae_transcoder.coder.names import hookpoint_of
from sae_transcoder.training.coder_trainer import CoderTrainer


def copy_coders(trainer: CoderTrainer) -> dict[str, SparseCoder]:
    """Copies the coders: with signum its averaged weights, decoder rows at norm 1 where the settings ask for it, the final k, for activations
    as they are."""
    with averaged_weights(trainer.optimizers, [p for coder in trainer.coders.values() for p in coder.parameters()]):
        copies = copy.deepcopy(trainer.coders)
    for coder in copies.values():
        coder.requires_grad_(False)
        coder.cfg.k = trainer.cfg.k
        if trainer.cfg.corrections and coder.cfg.normalize_decoder:
            coder.set_decoder_norm_to_unit_norm()
    coders = {name: coder.trained() if isinstance(coder, CorrectedCoder) else coder for name, coder in copies.items()}
    for name, coder in coders.items():
        if scales := trainer.scales.get(hookpoint_of(name)):
            to_plain(coder, scales)
    return coders
