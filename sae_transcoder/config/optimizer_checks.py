"""Faults in the optimizer's fields: numbers out of range, and settings that the optimizer does not have."""

import math

from sae_transcoder.config import DEFAULTS, OPTIMIZERS, Config, LrRule, LrSchedule, Optimizer


def optimizer_faults(cfg: Config) -> list[str]:
    """Faults of the optimizer's fields by themselves; those that the run's length decides are in preflight/length_faults.py."""
    return [*rate_faults(cfg), *gradient_faults(cfg), *missing_faults(cfg)]


def rate_faults(cfg: Config) -> list[str]:
    """A learning rate out of range, and a fall that the schedule does not have."""
    faults = []
    if cfg.lr not in (None, LrRule.sparsify) and not 0 < cfg.lr < math.inf:
        faults.append(f"lr={cfg.lr}: must be above 0 and finite, or null for a rate that suits the run's length")
    if cfg.lr_decay_steps is not None and cfg.lr_schedule == LrSchedule.constant:
        faults.append(
            f"lr_decay_steps={cfg.lr_decay_steps} with lr_schedule=constant: that rate does not fall; leave lr_schedule out, "
            "and the rate is constant up to the last lr_decay_steps"
        )
    return faults


def gradient_faults(cfg: Config) -> list[str]:
    """A norm or averages of gradients that cannot be."""
    faults = []
    if cfg.grad_clip_norm is not None and not 0 < cfg.grad_clip_norm < math.inf:
        faults.append(f"grad_clip_norm={cfg.grad_clip_norm}: must be above 0 and finite, or null for none")
    betas = cfg.adam_betas
    if betas is not None and (len(betas) != 2 or not all(0 <= beta < 1 for beta in betas)):
        faults.append(f"adam_betas={betas}: must be two numbers from 0 to below 1, as [0.9,0.999]")
    return faults


def missing_faults(cfg: Config) -> list[str]:
    """Settings that the optimizer does not have."""
    optimizer = OPTIMIZERS[cfg.optimizer]
    missing = {
        "weight_decay": optimizer.weight_decay is None,
        "lr_warmup_steps": not optimizer.scheduled,
        "lr_schedule": not optimizer.scheduled,
        "lr_decay_steps": not optimizer.scheduled,
        "adam_betas": cfg.optimizer != Optimizer.adam,
    }
    faults = [
        f"{name}={getattr(cfg, name)} with optimizer={cfg.optimizer}: it has none; leave {name} out"
        for name, is_missing in missing.items()
        if is_missing and getattr(cfg, name) != DEFAULTS[name]
    ]
    if cfg.optimizer == Optimizer.signum and cfg.grad_clip_norm is not None:
        faults.append(
            f"grad_clip_norm={cfg.grad_clip_norm} with optimizer=signum: the size of a step does not depend on the gradient's norm; "
            "leave grad_clip_norm out"
        )
    return faults
