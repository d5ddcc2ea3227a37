"""What the coders' step must know on the host, read from the device once a batch for all runs of a pack: which positions of outlying norm
are left out, and which latents are dead. Nothing else waits for a GPU between two lines of metrics; the forward is under way meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from sae_transcoder.coder import positions
from sae_transcoder.language_model.forward import Activations
from sae_transcoder.process.to_device import true_places

if TYPE_CHECKING:
    from sae_transcoder.training.coder_trainer import CoderTrainer


def read_ahead(runs: Sequence[CoderTrainer], tokens: Tensor, seen: Mapping[str, Activations]) -> None:
    """Tells each run what it must know of the batch `tokens` [batch, position], on the host, and its activations {hookpoint: ...}; what is
    known already is not read again."""
    kept = {}
    for run in runs:
        for point in run.points if run.cfg.max_norm_multiple is not None else ():
            key = positions.key(run.cfg)
            if point in seen and key not in seen[point].derived and (point, key) not in kept:
                counted = positions.counted(run.cfg, tokens)
                kept[point, key] = positions.within_norm(run.cfg, seen[point], counted, run.ranks)
    idle = {(run, name): mask for run in runs if run.dead is None for name, mask in run.idle().items()}
    places = true_places([*kept.values(), *idle.values()])
    for (point, key), found in zip(kept, places, strict=False):
        seen[point].derived[key] = found
    for run in runs:
        run.dead = {} if run.dead is None else run.dead
    for (run, name), found in zip(idle, places[len(kept) :], strict=True):
        assert run.dead is not None
        run.dead[name] = found
