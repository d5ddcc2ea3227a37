"""The learning rate of a coder: as set, sparsify's, or one that suits the run's length."""

from sae_transcoder.config.fields import Config
from sae_transcoder.config.fields.optimizer import OPTIMIZERS, LrRule

SHORT_RUN = 250  # optimizer steps up to which the best rate does not fall
USUAL_K = 32  # with which the factors were measured; the best rate follows the root of the share of latents that fire
FALL = 0.3  # the power of the run's length by which it falls from there


def learning_rate(cfg: Config, latents: int, steps: int) -> float:
    """The peak learning rate of a coder of so many latents in a run of `steps` optimizer steps.

    Where none is set: sparsify's, times a factor that falls to 1 as the run becomes as long as those that sparsify's is made for. It was measured on
    runs of up to 1,000 steps (benchmarks/ourselves/automatic_rate.py); docs/learning_rates.md has the rule and its figures.
    """
    if cfg.lr not in (None, LrRule.sparsify):
        return float(cfg.lr)
    optimizer = OPTIMIZERS[cfg.optimizer]
    rate = optimizer.sparsify_lr(latents)
    if not lr_follows_length(cfg):
        return rate
    factor = optimizer.short_run_factor[cfg.model_type] * (cfg.k / USUAL_K) ** 0.5
    return rate * max(1.0, factor * (SHORT_RUN / max(SHORT_RUN, steps)) ** FALL)


def lr_follows_length(cfg: Config) -> bool:
    """Whether the learning rate is the one that suits the run's length: it is not set, sparsify's own behaviour was not asked for, and no trained
    coders are at the start, which a high rate would spoil."""
    return cfg.lr is None and cfg.corrections and cfg.finetune is None
