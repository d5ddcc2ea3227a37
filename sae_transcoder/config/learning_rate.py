"""The learning rate of a coder: as set, sparsify's, or one that suits the run's length."""

from sae_transcoder.config.fields import Config
from sae_transcoder.config.fields.optimizer import OPTIMIZERS, LrRule, ShortRunRate

SHORT_RUN = 250  # optimizer steps up to which the best rate does not fall
USUAL_K, USUAL_LATENTS = 32, 2048  # with which the factors were measured
FALL = 0.3  # the power of the run's length by which it falls from there


def learning_rate(cfg: Config, latents: int, steps: int) -> float:
    """The peak learning rate of a coder of so many latents in a run of `steps` optimizer steps.

    Where none is set: sparsify's, times a factor that falls to 1 as the run becomes as long as those that sparsify's is made for. It was measured on
    runs of up to 1,000 steps (benchmarks/ourselves/automatic_rate.py); docs/learning_rates.md has the rule and its figures.
    """
    if cfg.lr not in (None, LrRule.sparsify):
        return float(cfg.lr)
    rate = OPTIMIZERS[cfg.optimizer].sparsify_lr(latents)
    if (rule := length_rule(cfg)) is None:
        return rate
    factor = rule.factor * (cfg.k / USUAL_K) ** rule.power_of_k * (latents / USUAL_LATENTS) ** rule.power_of_latents
    return rate * max(1.0, factor * (SHORT_RUN / max(SHORT_RUN, steps)) ** FALL)


def length_rule(cfg: Config) -> ShortRunRate | None:
    """The rule by which the learning rate suits the run's length; None where one is set, where sparsify's own behaviour was asked for, and where
    trained coders are at the start, which a high rate would spoil."""
    if cfg.lr is None and cfg.corrections and cfg.finetune is None:
        return OPTIMIZERS[cfg.optimizer].short_run_rate[cfg.model_type]
    return None
