"""Trains runs of a pack on one batch. Small runs train as one group, whose coders of one shape are computed in one batched product, since a
GPU would otherwise wait for each kernel's launch; every other run trains alone."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from sae_transcoder.coder import batched_coders
from sae_transcoder.coder.chunk_sizes import CHUNK_SIZE, SMALL_BATCH
from sae_transcoder.coder.corrected_coder import CorrectedCoder
from sae_transcoder.language_model.forward import Activations
from sae_transcoder.training.coder_trainer import CoderTrainer, optimizer_step
from sae_transcoder.training.task import Task


def is_small(trainer: CoderTrainer) -> bool:
    """Whether the run's coders train faster together with others. Depends on the size of a full batch, so all ranks and all batches agree."""
    return trainer.cfg.batch_size * trainer.cfg.max_seq_length * trainer.max_latents <= SMALL_BATCH[trainer.device.type]


def grouped(trainers: Sequence[CoderTrainer]) -> list[list[CoderTrainer]]:
    """The runs in groups: the small ones together, then each of the others alone."""
    small = [trainer for trainer in trainers if is_small(trainer)]
    single = [[trainer] for trainer in trainers if trainer not in small]
    return [small, *single] if small else single


def train_on_batch(trainers: Sequence[CoderTrainer], tokens: Tensor, activations: Mapping[str, Activations]) -> list[CoderTrainer]:
    """Trains a group on the batch `tokens` [batch, position], on the host, and its activations {hookpoint: ...}, after `read_ahead`. Returns
    the runs that made an optimizer step."""
    stacks: dict[object, list[tuple[CoderTrainer, Task]]] = {}
    for trainer in trainers:
        for task in trainer.tasks(tokens, activations):
            shape = batched_coders.batch_key(task.coder) if is_small(trainer) else None
            alone = (trainer, task.name) if shape is None else None
            key = shape, alone, id(task.x), id(task.y), trainer.cfg.micro_acc_steps
            stacks.setdefault(key, []).append((trainer, task))
    for stacked in stacks.values():
        trainer, first = stacked[0]
        most = max(1, CHUNK_SIZE[trainer.device.type] // max(1, len(first.y) * first.coder.num_latents))
        for start in range(0, len(stacked), most):
            backward(stacked[start : start + most])
    due = [trainer for trainer in trainers if trainer.end_batch(tokens.shape[1])]
    optimizer_step(due)
    return due


def backward(stacked: Sequence[tuple[CoderTrainer, Task]]) -> None:
    """Forward and backward of coders of one shape on the same inputs."""
    trainer, first = stacked[0]
    if len(stacked) == 1:
        trainer.backward(first)
        return
    coders = [cast(CorrectedCoder, task.coder) for _, task in stacked]
    dead_latents = [next(iter(task.dead.get("dead", ())), None) for _, task in stacked]
    for x, y, _ in first.micro_batches(trainer.cfg.micro_acc_steps, trainer.batch_ranks):
        outs = batched_coders.batched_forward(coders, x, y, dead_latents, first.variance)
        torch.stack(
            [trainer.loss(task.num_tokens, out) for (trainer, task), out in zip(stacked, outs, strict=True)]
        ).sum().backward()
        for (trainer, task), out in zip(stacked, outs, strict=True):
            trainer.record(task.name, task.num_tokens, out, auxk_acts=bool(task.dead))
