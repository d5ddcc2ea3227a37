"""The optimizers: what each has, and the fields that set one up. coder/build_optimizers.py builds them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sae_transcoder.config.fields.metadata import added, bounded, number_or
from sae_transcoder.config.fields.model_type import ModelType


class Optimizer(StrEnum):
    adam = "adam"
    muon = "muon"
    signum = "signum"


class LrRule(StrEnum):
    sparsify = "sparsify"


class LrSchedule(StrEnum):
    linear = "linear"
    constant = "constant"
    cosine = "cosine"


@dataclass(frozen=True)
class ShortRunRate:
    """The best rate of a short run over sparsify's: `factor` at 32 of 2,048 latents, times powers of the ratios of k and of the number of latents to
    these. A power of k of 0.5 on top of sparsify's root of the latents follows the share of latents that fire."""

    factor: float
    power_of_k: float = 0.5
    power_of_latents: float = 0.0


@dataclass(frozen=True)
class OptimizerFacts:
    """What checks, the memory estimate, warnings and the header need to know of an optimizer."""

    sparsify_lr: Callable[[int], float]
    """sparsify's learning rate for a coder of so many latents where none is set (trainer.py:149, 171, 199)."""
    short_run_rate: Mapping[ModelType, ShortRunRate]
    """The best rate of a short run (config/learning_rate.py)."""
    states: int
    """State tensors of each parameter's size."""
    step_bytes: int
    """Bytes that a step computes at once for each entry of the largest weight matrix."""
    scheduled: bool = True
    """Whether its rate rises in a warmup and falls to 0; False: the rate is constant."""
    weight_decay: float | None = 0.0
    """Weight decay where none is set; None: it has no weight decay."""
    fused: bool = False
    """Whether corrections=true takes torch's fused kernel, which makes a step in one pass."""
    averaged: bool = False
    """Whether the published coder is an average of the weights over the run."""


def over_root_of_latents(rate: float) -> Callable[[int], float]:
    """A learning rate that falls with the square root of the number of latents."""
    return lambda num_latents: rate / (num_latents / 2**14) ** 0.5


def rates(sae: ShortRunRate, transcoder: ShortRunRate) -> dict[ModelType, ShortRunRate]:
    """{model type: its rate}."""
    return {ModelType.sae: sae, ModelType.transcoder: transcoder}


OPTIMIZERS = {
    Optimizer.adam: OptimizerFacts(
        over_root_of_latents(2e-4),
        rates(sae=ShortRunRate(20), transcoder=ShortRunRate(56, power_of_k=0, power_of_latents=0.25)),
        states=2,
        step_bytes=4,
        fused=True,
    ),
    Optimizer.muon: OptimizerFacts(
        lambda _: 2e-3,
        rates(sae=ShortRunRate(8), transcoder=ShortRunRate(40, power_of_k=0)),
        states=1,
        step_bytes=4 * 2,  # four copies in bfloat16
        weight_decay=0.1,
    ),
    Optimizer.signum: OptimizerFacts(
        over_root_of_latents(5e-3),
        rates(sae=ShortRunRate(1, power_of_k=0), transcoder=ShortRunRate(2.2, power_of_k=0, power_of_latents=0.25)),
        states=1,
        step_bytes=4,
        scheduled=False,
        weight_decay=None,
        averaged=True,
    ),
}


@dataclass
class OptimizerConfig:
    """How the coder is optimised (group `optimizer`)."""

    optimizer: Optimizer = Optimizer.adam
    """adam: torch's; signum: sign descent, schedule-free averaged; muon: orthogonalised momentum, Adam for the biases."""
    lr: Any = number_or(LrRule)
    """Learning rate. null: by the run's length, latents, optimizer and model type (docs/learning_rates.md); sparsify's with corrections=false or
    `finetune`. sparsify: sparsify's, made for billions of tokens: adam 2e-4, signum 5e-3, both over sqrt(latents / 2^14); muon 2e-3."""
    lr_warmup_steps: int | None = bounded(None, at_least=0)
    """Optimizer steps over which Adam's rate (with muon: that of the biases) rises from 0. All rates then fall as `lr_schedule` says.
    null: a twentieth of the run, at most 1,000. signum has neither warmup nor decay."""
    weight_decay: float | None = bounded(None, at_least=0.0)
    """adam: L2 penalty; muon: decoupled decay of the matrices. null: the optimizer's own (adam 0, muon 0.1). signum has none."""
    lr_schedule: LrSchedule = added(LrSchedule.linear)
    """How the learning rate falls to 0 after its warmup: linear, or along a cosine; constant: not at all."""
    lr_decay_steps: int | None = added(None, at_least=1)
    """Optimizer steps at the run's end over which the rate falls; before, it is constant. null: all after the warmup."""
    grad_clip_norm: float | None = added(None)
    """Largest norm of a coder's gradient, which is scaled down to it. The loss is an FVU: other programs' gradients are larger by the variance
    of a token. Adam's eps of 1e-8 is multiplied by a norm below 1. null: none."""
    adam_betas: list[float] | None = added(None)
    """Adam's decay rates of its averages of gradients and of their squares. null: [0.9, 0.999]."""
