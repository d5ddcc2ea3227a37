"""What a model of random weights lacks of a real one's statistics, planted into its coders: latents that never fire, a latent that always does.

Rates are so small that what is planted stays. Which latents fire otherwise is left to the activations, of tokens as frequent as words are.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from gpu.phases import Seen
from gpu.rows import Row
from sae_transcoder.coder.jump_relu_coder import JumpReLUCoder
from sae_transcoder.training.coder_trainer import CoderTrainer

RATE = 1e-9  # Adam's: every operation of a step is made, and nothing moves
SAMPLE = 1024  # tokens on which it is looked how latents fire
FAINT = 1e-3  # what the encoder's rows of latents that never fire are multiplied by


def tokens(vocabulary: int, count: int) -> NDArray[np.uint32]:
    """Ids [token] whose frequency falls as that of words does: as 1 / (2.7 + rank), the most frequent first."""
    weights = 1 / (2.7 + np.arange(vocabulary))
    return np.random.default_rng(0).choice(vocabulary, size=count, p=weights / weights.sum()).astype(np.uint32)


@contextmanager
def noticed() -> Iterator[list[CoderTrainer]]:
    """Yields the runs that are made while it is open."""
    runs: list[CoderTrainer] = []
    made = CoderTrainer.__init__

    def make(run: CoderTrainer, *arguments: Any, **named: Any) -> None:
        made(run, *arguments, **named)
        runs.append(run)

    with patch.object(CoderTrainer, "__init__", make):
        yield runs


@torch.no_grad()
def plant(row: Row, runs: list[CoderTrainer], number: int, seen: Seen) -> None:
    """At batch `number`, from 0: at the second, latents are made faint or dense, and thresholds what k of a token's latents exceed; at each one
    after it one more grows faint, so that the number of dead latents is never the same twice, as in real runs."""
    for run in runs if number else ():
        for point, coder in run.coders.items():
            many = int(row.dead * coder.num_latents)
            if many:
                faint = slice(0, many) if number == 1 else slice(many + number - 2, many + number - 1)
                coder.encoder.weight[faint] *= FAINT
            if row.dense and number == 1:
                preacts = preacts_of(run, point, seen)
                usual = preacts.topk(row.k, dim=-1).values[:, -1].max()
                coder.encoder.bias[-1] = 2 * (usual - preacts[:, -1].min())
            if isinstance(coder, JumpReLUCoder) and number == 1:
                preacts = preacts_of(run, point, seen)
                coder.threshold.fill_(preacts.flatten().topk(row.k * len(preacts)).values[-1])


def preacts_of(run: CoderTrainer, hookpoint: str, seen: Seen) -> Tensor:
    """The coder's pre-activations of some inputs, float32 [token, latent]."""
    coder = run.coders[hookpoint]
    return coder.encoder(sample(run, hookpoint, seen) - coder.b_dec)


def sample(run: CoderTrainer, hookpoint: str, seen: Seen) -> Tensor:
    """Some inputs of the run's coder, float32 [token, d]."""
    inputs = seen[hookpoint].output.flatten(0, 1)[:SAMPLE].float()
    scales = run.scales.get(hookpoint)
    return scales.scaled(inputs, inputs)[0] if scales else inputs


@torch.no_grad()
def statistics(run: CoderTrainer, seen: Seen) -> dict[str, float]:
    """Of the run's coder now: the share of its latents that count as dead, and of tokens on which its most frequent latent fires."""
    ((point, coder),), (idle,) = run.coders.items(), run.tokens_since_fired.values()
    acts, indices, *_ = coder.encode(sample(run, point, seen))
    times = torch.bincount(indices[acts > 0].flatten(), minlength=coder.num_latents)
    dead = (idle > run.cfg.dead_feature_threshold).float().mean()
    return {"dead": dead.item(), "most_frequent": times.max().item() / len(indices)}
