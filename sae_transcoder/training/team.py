"""Runs of a pack that train on a batch together, so that a GPU is asked once for what they have in common; where that does not pay, each
by itself."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from sae_transcoder.coder import batched_coders
from sae_transcoder.coder.chunk_sizes import CHUNK_SIZE, SMALL_BATCH
from sae_transcoder.coder.corrected_coder import CorrectedCoder
from sae_transcoder.language_model.forward import Activations
from sae_transcoder.training.coder_trainer import CoderTrainer, Task, optimizer_step


def small(run: CoderTrainer) -> bool:
    """Whether the run's coders are faster together with others: by the size of a whole batch, in which all ranks and all batches agree."""
    return run.cfg.batch_size * run.cfg.max_seq_length * run.most_latents <= SMALL_BATCH[run.device.type]


def teams(runs: Sequence[CoderTrainer]) -> list[list[CoderTrainer]]:
    """The runs in groups that train together, the small ones first."""
    together = [run for run in runs if small(run)]
    alone = [[run] for run in runs if run not in together]
    return [together, *alone] if together else alone


def train_on(runs: Sequence[CoderTrainer], tokens: Tensor, seen: Mapping[str, Activations]) -> list[CoderTrainer]:
    """Trains the runs on the batch `tokens` [batch, position], on the host, and its activations {hookpoint: ...}; returns those of which an
    optimizer step was made."""
    groups: dict[object, list[tuple[CoderTrainer, Task]]] = {}
    for run in runs:
        for task in run.tasks(tokens, seen):
            shape = batched_coders.batch_key(task.coder) if small(run) else None
            alone = (run, task.name) if shape is None else None
            groups.setdefault((shape, alone, id(task.x), id(task.y), run.cfg.micro_acc_steps), []).append((run, task))
    for group in groups.values():
        most = max(1, CHUNK_SIZE[group[0][0].device.type] // max(1, len(group[0][1].y) * group[0][1].coder.num_latents))
        for start in range(0, len(group), most):
            backward(group[start : start + most])
    due = [run for run in runs if run.end_batch(tokens.shape[1], steps=False)]
    optimizer_step(due)
    return due


def backward(group: Sequence[tuple[CoderTrainer, Task]]) -> None:
    """Forward and backward of coders of one shape on the same inputs."""
    (run, task), *others = group
    if not others:
        run.backward(task)
        return
    coders = [cast(CorrectedCoder, own.coder) for _, own in group]
    dead = [own.dead.get("dead") for _, own in group]
    for x, y in task.pieces(run.cfg.micro_acc_steps):
        outs = batched_coders.batched_forward(coders, x, y, dead, task.variance)
        torch.stack([own.loss(each, out) for (own, each), out in zip(group, outs, strict=True)]).sum().backward()
        for (own, each), out in zip(group, outs, strict=True):
            own.count(each.name, out, acts=bool(each.dead))
