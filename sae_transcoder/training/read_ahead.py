"""What a batch's training must know on the host: which positions have an outlying norm, and which latents are dead.

It is read from the device once a batch for all runs of a pack, while the language model's forward is under way. Nothing else waits for a GPU
between two lines of metrics.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from sae_transcoder.language_model.forward import Activations
from sae_transcoder.process.to_device import true_indices
from sae_transcoder.training.coder_trainer import CoderTrainer


def read_ahead(trainers: Sequence[CoderTrainer], tokens: Tensor, activations: Mapping[str, Activations]) -> None:
    """Reads what the runs need for the batch `tokens` [batch, position], on the host, and its activations {hookpoint: ...}.

    Positions go to `Activations.derived`, dead latents to each trainer, once for each optimizer step.
    """
    masks = {}
    for trainer in trainers:
        positions = trainer.positions
        for point in trainer.hookpoints if positions.max_norm_multiple is not None else ():
            if point in activations and (point, positions) not in masks:
                by_token = positions.by_token(tokens)
                masks[point, positions] = positions.within_norm(activations[point], by_token, trainer.batch_ranks)
    dead = [
        (t, name, mask)
        for t in trainers
        if t.dead_latents is None
        for name, groups in t.dead_masks_to_read().items()
        for mask in groups
    ]
    indices = true_indices([*masks.values(), *(mask for _, _, mask in dead)])
    for (point, positions), kept in zip(masks, indices, strict=False):
        activations[point].derived[positions] = kept
    for trainer in trainers:
        trainer.dead_latents = {} if trainer.dead_latents is None else trainer.dead_latents
    for (trainer, name, _), rows in zip(dead, indices[len(masks) :], strict=True):
        assert trainer.dead_latents is not None
        trainer.dead_latents.setdefault(name, []).append(rows)
