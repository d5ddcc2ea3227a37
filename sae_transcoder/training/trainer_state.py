"""The state of a CoderTrainer as it is saved, restored and released."""

from typing import Any

from sae_transcoder.coder.activation_scales import Scales
from sae_transcoder.training.coder_trainer import CoderTrainer


def training_state(trainer: CoderTrainer) -> dict[str, Any]:
    """All that the rest of the run depends on, also between two batches of a step. Refers to the trainer's own tensors."""
    return {
        "counts": [trainer.batch, trainer.step, trainer.tokens, trainer.k_used, trainer.lr_used],
        "biases_set": sorted(trainer.biases_set),
        "scales": {point: list(scales) for point, scales in trainer.scales.items()},
        "coders": {name: coder.state_dict() for name, coder in trainer.coders.items()},
        "gradients": {name: [p.grad for p in coder.parameters()] for name, coder in trainer.coders.items()},
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "schedules": [schedule.state_dict() for schedule in trainer.schedules],
        "tokens_since_fired": trainer.tokens_since_fired,
        "fired": trainer.fired,
        "tokens_in_step": trainer.tokens_in_step,
    } | trainer.averages.state()


def rank_state(trainer: CoderTrainer) -> dict[str, Any]:
    """The part of `training_state` in which ranks that share each batch differ."""
    return {name: value for name, value in training_state(trainer).items() if name in ("gradients", "fired", "sums")}


def restore(trainer: CoderTrainer, state: dict[str, Any]) -> None:
    """Continues from the `training_state` of an equal run; its tensors may be on another device."""
    trainer.batch, trainer.step, trainer.tokens, trainer.k_used, trainer.lr_used = state["counts"]
    trainer.biases_set = set(state["biases_set"])
    trainer.scales = {point: Scales(*scales) for point, scales in state.get("scales", {}).items()}  # earlier versions had none
    for name, coder in trainer.coders.items():
        coder.load_state_dict(state["coders"][name])
        for parameter, gradient in zip(coder.parameters(), state["gradients"][name], strict=True):
            parameter.grad = None if gradient is None else gradient.to(trainer.device)
    stateful = trainer.optimizers + trainer.schedules
    for optimizer_or_schedule, saved in zip(stateful, state["optimizers"] + state["schedules"], strict=True):
        optimizer_or_schedule.load_state_dict(saved)
    for name in trainer.coders:
        trainer.tokens_since_fired[name].copy_(state["tokens_since_fired"][name])
        trainer.fired[name].copy_(state["fired"][name])
    trainer.tokens_in_step = state["tokens_in_step"]
    trainer.dead_latents = None
    trainer.averages.restore(state)
    trainer.set_k()


def release(trainer: CoderTrainer) -> None:
    """Frees the memory of coders and optimizers; the counts stay."""
    for optimizer in trainer.optimizers:  # their schedules refer to them, and they to these
        optimizer.state.clear()
        optimizer.param_groups.clear()
    trainer.optimizers, trainer.schedules = [], []
    for tensors in (trainer.coders, trainer.tokens_since_fired, trainer.fired, trainer.tokens_in_step, trainer.averages):
        tensors.clear()  # type: ignore[attr-defined]
