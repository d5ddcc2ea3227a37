"""CoderTrainers on a batch, as the engine trains them, and coder by coder as a reference."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from sae_transcoder.language_model.forward import Activations
from sae_transcoder.training import batched_training, end_to_end
from sae_transcoder.training.coder_trainer import CoderTrainer, optimizer_step
from sae_transcoder.training.read_ahead import read_ahead


def train_alone(trainer: CoderTrainer, tokens: Tensor, activations: Mapping[str, Activations]) -> bool:
    """Trains a run coder by coder; returns whether it made an optimizer step."""
    read_ahead([trainer], tokens, activations)
    for task in trainer.tasks(tokens, activations):
        trainer.backward(task)
    step_is_due = trainer.end_batch(tokens.shape[1])
    if step_is_due:
        optimizer_step([trainer])
    return step_is_due


def train_together(trainers: Sequence[CoderTrainer], tokens: Tensor, activations: Mapping[str, Activations]) -> list[CoderTrainer]:
    """Trains a group of runs; returns those that made an optimizer step."""
    read_ahead(trainers, tokens, activations)
    return batched_training.train_on_batch(trainers, tokens, activations)


def train_end_to_end(trainer: CoderTrainer, model: nn.Module, tokens: Tensor, tokens_on_device: Tensor) -> bool:
    """Trains a run by the language model's own loss; returns whether it made an optimizer step."""
    read_ahead([trainer], tokens, {})
    return end_to_end.train_end_to_end(trainer, model, tokens, tokens_on_device)
