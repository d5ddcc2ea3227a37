"""Faults in a run's length: batches, warmup and k decay that the samples do not suffice for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_transcoder.config import Config, warmup_steps

if TYPE_CHECKING:
    from sae_transcoder.config.run_length import RunLength


def length_faults(cfg: Config, length: RunLength, samples: int) -> list[str]:
    """Faults of a run on `samples` sequences, of which it reads `length.samples`."""
    batch = f"batch_size={cfg.batch_size}" + (
        f" on {length.batch // cfg.batch_size} ranks" if length.batch > cfg.batch_size else ""
    )
    limit = f"max_samples={cfg.max_samples}" if samples == cfg.max_samples else None
    if length.batch > samples:
        source = limit or f"the data gives {samples} training samples"
        return [f"{batch} with {source}: not one full batch; lower batch_size or give more samples"]
    if length.steps < 1:
        return [
            f"grad_acc_steps={cfg.grad_acc_steps} with {length.samples // length.batch} batches: not one optimizer step; "
            "lower it or give more samples"
        ]
    faults = []
    if cfg.max_steps is not None and length.steps < cfg.max_steps:
        faults.append(
            f"max_steps={cfg.max_steps}: {limit or 'the data'} gives {samples} samples, which make {length.steps} optimizer steps; "
            "raise max_samples (null: all) or lower max_steps"
        )
    division = f"{length.samples} samples / ({batch.replace('=', ' ')} x grad_acc_steps {cfg.grad_acc_steps})"
    twentieth = "lower it, or leave it out for a twentieth of the run"
    for name, fix in [("lr_warmup_steps", twentieth), ("k_decay_steps", "lower it"), ("l0_warmup_steps", "lower it")]:
        value = getattr(cfg, name)
        if value and value >= length.steps:
            faults.append(f"{name}={value}: the run has {length.steps} optimizer steps ({division}); {fix}")
    warmup = warmup_steps(cfg, length.steps)
    if cfg.lr_decay_steps is not None and warmup + cfg.lr_decay_steps > length.steps > warmup:
        automatic = "" if cfg.lr_warmup_steps is not None else ", a twentieth of the run"
        faults.append(
            f"lr_decay_steps={cfg.lr_decay_steps}: the run has {length.steps} optimizer steps ({division}), of which {warmup} are its warmup"
            f"{automatic}; set it to at most {length.steps - warmup}, or leave it out for all after the warmup"
        )
    return faults
