"""Faults in a run's length: batches, warmup and k decay that the samples do not suffice for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_transcoder.config import Config, warmup_steps
from sae_transcoder.config.run_length import samples_of_limits

if TYPE_CHECKING:
    from sae_transcoder.config.run_length import RunLength


def length_faults(cfg: Config, length: RunLength, samples: int) -> list[str]:
    """Faults of a run on `samples` sequences, of which it reads `length.samples`."""
    batch = f"batch_size={cfg.batch_size}" + (f" on {length.ranks} ranks" if length.ranks > 1 else "")
    limits = samples_of_limits(cfg, length.ranks)
    if limits.get("max_tokens") == 0:
        return [
            f"max_tokens={cfg.max_tokens}: not one batch of {batch.replace('=', ' ')} x max_seq_length {cfg.max_seq_length} tokens; raise it, or "
            "lower batch_size"
        ]
    if cfg.max_tokens is not None and cfg.max_samples is not None and limits["max_tokens"] > cfg.max_samples:
        return [
            f"max_tokens={cfg.max_tokens} with max_samples={cfg.max_samples}: these are {cfg.max_samples * cfg.max_seq_length} tokens; set "
            "max_samples=null, or lower max_tokens"
        ]
    limit = next((f"{name}={getattr(cfg, name)}" for name in ("max_samples", "max_tokens") if samples == limits.get(name)), None)
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
            + more_steps(cfg, length, limit)
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


def more_steps(cfg: Config, length: RunLength, limit: str | None) -> str:
    """What lets a run make max_steps optimizer steps, or fewer be asked for; limit: the setting that ends the data, None: all of it is read."""
    if limit is not None:
        return f"raise {'max_tokens' if limit.startswith('max_tokens') else 'max_samples (null: all)'} or lower max_steps"
    smaller = ", ".join(name for name in ("batch_size", "grad_acc_steps") if getattr(cfg, name) > 1)
    fields = f"{smaller} or max_seq_length" if smaller else "max_seq_length"
    return f"give more text, lower {fields}, or set max_steps to at most {length.steps}"
