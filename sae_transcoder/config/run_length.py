"""How long a run is: the samples that it reads, and the batches and optimizer steps made of them."""

import math
from dataclasses import dataclass

from sae_transcoder.config import Config


@dataclass(frozen=True)
class RunLength:
    """How long a run is: batches, optimizer steps, samples in all, and samples in one batch over all ranks."""

    batches: int
    steps: int
    samples: int
    batch: int

    def rows(self, index: int) -> tuple[int, int]:
        """The first sequence of a batch, and the one after its last; the last batch may be short."""
        return index * self.batch, min((index + 1) * self.batch, self.samples)


def samples_of_max_steps(cfg: Config, ranks: int = 1) -> int | None:
    """Samples that `max_steps` optimizer steps read, where so many ranks share each batch; None where it is not set."""
    return None if cfg.max_steps is None else cfg.max_steps * cfg.grad_acc_steps * cfg.batch_size * ranks


def needed_samples(cfg: Config, ranks: int = 1) -> int | None:
    """Training samples that the run reads at most, where so many ranks share each batch; None: all there are."""
    limits = (cfg.max_samples, samples_of_max_steps(cfg, ranks))
    return min((limit for limit in limits if limit is not None), default=None)


def run_length(cfg: Config, samples: int, ranks: int = 1) -> RunLength:
    """The length of a run that has `samples` sequences to read, before `max_steps` ends it; ranks: how many share each batch.

    A last batch that is not full, and a last step of fewer batches, count; sparsify drops the latter.
    """
    size = cfg.batch_size * ranks
    limit = samples_of_max_steps(cfg, ranks)
    if limit is not None:
        samples = min(samples, limit)
    batches = math.ceil(samples / size)
    if cfg.corrections:
        return RunLength(batches, math.ceil(batches / cfg.grad_acc_steps), samples, size)
    steps = batches // cfg.grad_acc_steps  # sparsify starts the samples over, without end
    return RunLength(steps * cfg.grad_acc_steps, steps, samples, size)
