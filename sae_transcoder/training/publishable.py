"""Copies of a run's coders as they are published."""

import copy

import torch
from schedulefree import ScheduleFreeWrapper

from sae_transcoder.coder.corrected_coder import SparseCoder
from sae_transcoder.training.coder_trainer import CoderTrainer


def publishable_coders(trainer: CoderTrainer) -> dict[str, SparseCoder]:
    """Copies the coders: with signum its averaged weights, decoder rows at norm 1 where the settings ask for it, the final k."""
    params = [p for coder in trainer.coders.values() for p in coder.parameters()]
    schedule_free = [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, ScheduleFreeWrapper)]
    weights_before = [p.detach().clone() for p in params] if schedule_free else []  # its way there and back is not exact
    for optimizer in schedule_free:
        optimizer.eval()
    copies = copy.deepcopy(trainer.coders)
    for coder in copies.values():
        coder.requires_grad_(False)
        coder.cfg.k = trainer.cfg.k
        if trainer.cfg.corrections and coder.cfg.normalize_decoder:
            coder.set_decoder_norm_to_unit_norm()
    for optimizer in schedule_free:
        optimizer.train()
    with torch.no_grad():
        for param, value in zip(params, weights_before, strict=False):
            param.copy_(value)
    return copies
