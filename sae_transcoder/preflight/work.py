"""How much a pack of runs computes: in training, and in an evaluation. Only ratios between packs count: times that were measured for one give an
estimate for another (time_estimate.py). Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sae_transcoder.config import Activation, Config, LossFn, num_latents
from sae_transcoder.preflight.memory_estimate import coder_parameters

if TYPE_CHECKING:
    from sae_transcoder.preflight.plan import Plan

# What takes time without many multiplications, in operations that take as long: an optimizer's step for each parameter, and softmax, its logarithm
# and their difference in float64 for each entry of the vocabulary.
OPTIMIZER_STEP, DIVERGENCE = 150, 500


@dataclass(frozen=True)
class Work:
    """Operations in all, and for each token that passes through the language model."""

    total: float
    per_token: float


def training_work(plans: Sequence[Plan]) -> Work:
    """Training of runs side by side, without what is measured in between."""
    tokens = max(trained_tokens(plan) for plan in plans)
    cfg, forward = plans[0].cfg, plans[0].forward
    model = 2.0 * max(plan.forward.to_hookpoints for plan in plans)
    if cfg.loss_fn != LossFn.fvu:  # there and back, and for kl the model as it is
        model = 2.0 * (forward.whole + forward.head) * (4 if cfg.loss_fn == LossFn.kl else 3)
    total = model * tokens + sum(coders_step(plan) * trained_tokens(plan) for plan in plans)
    return Work(total, total / tokens)


def evaluation_work(plans: Sequence[Plan]) -> Work:
    """One evaluation of all metrics that the runs ask for."""
    tokens = len(plans[0].tokens.heldout) * plans[0].cfg.max_seq_length
    total = reconstruction_work(plans) + sum(cosines(plan) for plan in plans)
    spliced = [plan for plan in plans if plan.predicts and (plan.cfg.eval_end_to_end or plan.cfg.loss_fn != LossFn.fvu)]
    if spliced:
        places = [places_in(plan) for plan in spliced]
        with_coders = sum(len(each) * len(plan.cfg.init_seeds) for plan, each in zip(spliced, places, strict=True))
        with_zeros = len({place for each in places for place in each})
        forward = plans[0].forward
        of_model = 2.0 * (forward.whole + forward.head)
        total += tokens * (of_model + (with_coders + with_zeros) * (of_model + DIVERGENCE * forward.vocabulary))
    return Work(total, total / tokens)


def reconstruction_work(plans: Sequence[Plan]) -> float:
    """Measuring the coders' reconstruction on the held-out tokens."""
    tokens = len(plans[0].tokens.heldout) * plans[0].cfg.max_seq_length
    encoding = sum(
        2.0 * width * num_latents(plan.cfg, width) * len(plan.cfg.init_seeds) for plan in plans for width in plan.widths.values()
    )
    return tokens * (2.0 * max(plan.forward.to_hookpoints for plan in plans) + encoding)


def evaluations(plan: Plan) -> tuple[int, int]:
    """How many times a run is measured in full, and how many times on its coders' reconstruction alone, to find the best."""
    cfg, steps = plan.cfg, plan.length.steps
    full = set(range(cfg.eval_every, steps, cfg.eval_every)) if cfg.eval_every else set()
    saves = set(range(cfg.save_every, steps, cfg.save_every)) if cfg.save_best else set()
    return len(full) + 1, len(saves - full)


def trained_tokens(plan: Plan) -> int:
    """Tokens that a run trains on."""
    return plan.length.samples * plan.cfg.max_seq_length


def coders_step(plan: Plan) -> float:
    """What training a run's coders computes for each token."""
    cfg = plan.cfg
    tokens_a_step = plan.length.batch * cfg.grad_acc_steps * cfg.max_seq_length
    return len(cfg.init_seeds) * sum(coder_step(cfg, width, tokens_a_step) for width in plan.widths.values())


def coder_step(cfg: Config, width: int, tokens_a_step: int) -> float:
    """What training one coder computes for each token: of all latents their pre-activations, and the rows of those that fire several times."""
    passes = 3 if cfg.activation == Activation.jumprelu else 1
    encoding = 2.0 * width * num_latents(cfg, width) * passes
    return encoding + 12.0 * width * cfg.k + OPTIMIZER_STEP * coder_parameters(cfg, width) / tokens_a_step


def cosines(plan: Plan) -> float:
    """All cosines between a coder's rows, of its encoder and of its decoder."""
    return sum(4.0 * num_latents(plan.cfg, width) ** 2 * width for width in plan.widths.values()) * len(plan.cfg.init_seeds)


def places_in(plan: Plan) -> list[tuple[str, ...]]:
    """The hookpoints at which modules are replaced at once: each alone, and where there are several, all."""
    alone: list[tuple[str, ...]] = [(point,) for point in plan.widths]
    return alone if len(alone) == 1 else [*alone, tuple(plan.widths)]
