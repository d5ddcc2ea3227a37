"""Batches, losses and the length of a run."""

from dataclasses import dataclass, field
from enum import StrEnum

from sae_transcoder.config.fields.metadata import added, bounded, path


class LossFn(StrEnum):
    fvu = "fvu"
    ce = "ce"
    kl = "kl"


@dataclass
class TrainingConfig:
    """Batches, losses and length of a run."""

    batch_size: int = bounded(2, at_least=1)
    """Sequences per batch; per rank, where several ranks train one run with distribute_modules=false. The header warns of batches that
    are too small for a GPU."""
    grad_acc_steps: int = bounded(8, at_least=1)
    """Batches per optimizer step."""
    micro_acc_steps: int = bounded(1, at_least=1)
    """Pieces in which a batch's activations pass through the coder. More pieces save memory and change no gradient."""
    max_steps: int | None = bounded(None, at_least=1)
    """Optimizer steps after which the run ends; there must be samples for all of them. null: all samples once."""
    max_tokens: int | None = added(None, at_least=1)
    """Tokens to train on at most, rounded down to whole batches (all ranks' `batch_size` x `max_seq_length`). A smaller `max_samples` is refused,
    a smaller `max_steps` ends the run. null: as these say."""
    loss_fn: LossFn = LossFn.fvu
    """fvu: fraction of the activations' variance that is left unexplained. ce, kl: the language model's next-token cross-entropy,
    or KL(original || spliced) of its predictions, with the coders' outputs in place of the modules'."""
    auxk_alpha: float = bounded(0.03125, at_least=0.0)
    """Weight of the loss that has dead latents predict what is left unexplained (Gao et al. 2024, appendix B.1). 0: none."""
    dead_feature_threshold: int = bounded(5_000_000, at_least=0)
    """Tokens after which a latent that has not fired counts as dead."""
    k_decay_steps: int = bounded(0, at_least=0)
    """Optimizer steps (with corrections=false: batches) over which k falls linearly from min(latents, 10 x width) to `k`."""
    init_seeds: list[int] = field(default_factory=lambda: [42])
    """Seeds of the initialisation; several train one coder each, side by side."""
    finetune: str | None = path(None)
    """Start from these coders instead of from `init_seeds`: a run's directory, a folder of sparsify coders, or a hub id."""
    corrections: bool = True
    """Train with sparsify's known faults corrected (docs/sparsify.md has the list). false: sparsify's own behaviour, for comparison."""
