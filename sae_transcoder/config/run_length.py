"""How long a run is: the samples that it reads, and the batches and optimizer steps made of them."""

import math
from dataclasses import dataclass

from sae_transcoder.config import Config


@dataclass(frozen=True)
class RunLength:
    """How long a run is: batches, optimizer steps, samples in all, samples in one batch, and the ranks that share each batch."""

    batches: int
    steps: int
    samples: int
    batch: int
    ranks: int

    def rows(self, index: int) -> tuple[int, int]:
        """The first sequence of a batch, and the one after its last; the last batch may be short."""
        return index * self.batch, min((index + 1) * self.batch, self.samples)


def samples_of_limits(cfg: Config, ranks: int = 1) -> dict[str, int]:
    """{field: samples that a run reads at most, where so many ranks share each batch} of the fields that limit it and are set."""
    batch = cfg.batch_size * ranks
    limits = {
        "max_samples": cfg.max_samples,
        "max_steps": None if cfg.max_steps is None else cfg.max_steps * cfg.grad_acc_steps * batch,
        "max_tokens": None if cfg.max_tokens is None else cfg.max_tokens // (cfg.max_seq_length * batch) * batch,
    }
    return {name: limit for name, limit in limits.items() if limit is not None}


def needed_samples(cfg: Config, ranks: int = 1) -> int | None:
    """Training samples that the run reads at most, where so many ranks share each batch; None: all there are."""
    return min(samples_of_limits(cfg, ranks).values(), default=None)


def run_length(cfg: Config, samples: int, ranks: int = 1) -> RunLength:
    """The length of a run that has `samples` sequences to read, before `max_steps` or `max_tokens` ends it; ranks: how many share each batch.

    A last batch that is not full, and a last step of fewer batches, count; sparsify drops the latter.
    """
    size = cfg.batch_size * ranks
    limits = samples_of_limits(cfg, ranks)
    samples = min([samples, *(limits[name] for name in ("max_steps", "max_tokens") if name in limits)])
    batches = math.ceil(samples / size)
    if cfg.corrections:
        return RunLength(batches, math.ceil(batches / cfg.grad_acc_steps), samples, size, ranks)
    steps = batches // cfg.grad_acc_steps  # sparsify starts the samples over, without end
    return RunLength(steps * cfg.grad_acc_steps, steps, samples, size, ranks)
