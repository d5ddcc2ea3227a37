"""A run's length, and sparsify's own configs for it."""

import math
from dataclasses import dataclass

from sae_transcoder.coder.sparsify_parts import SparseCoderConfig, TrainConfig
from sae_transcoder.config import Config, normalize_decoder, run_dir, run_name, samples_of_max_steps, warmup_steps


@dataclass(frozen=True)
class Length:
    """How long a run is: batches read, optimizer steps made of them, samples in all, and in one batch over all ranks."""

    batches: int
    steps: int
    samples: int
    batch: int

    def rows(self, index: int) -> tuple[int, int]:
        """First sequence of a batch, and the one after its last; the last batch may be short."""
        return index * self.batch, min((index + 1) * self.batch, self.samples)


def length(cfg: Config, samples: int, ranks: int = 1) -> Length:
    """The length of a run that has `samples` sequences to read, before `max_steps` ends it; ranks: how many share each batch.

    A last batch that is not full, and a last step of fewer batches, count; sparsify drops the latter.
    """
    size = cfg.batch_size * ranks
    samples = min(n for n in (samples, samples_of_max_steps(cfg, ranks)) if n is not None)
    batches = math.ceil(samples / size)
    if cfg.corrections:
        return Length(batches, math.ceil(batches / cfg.grad_acc_steps), samples, size)
    steps = batches // cfg.grad_acc_steps  # sparsify reads on, to no end
    return Length(steps * cfg.grad_acc_steps, steps, samples, size)


def sparsify_configs(cfg: Config, hookpoints: list[str], steps: int) -> tuple[SparseCoderConfig, TrainConfig]:
    """sparsify's own configs for a run of `steps` optimizer steps on `hookpoints`; fields not listed have no counterpart here."""
    coder = SparseCoderConfig(
        activation=cfg.activation.value,
        expansion_factor=cfg.expansion_factor,
        normalize_decoder=normalize_decoder(cfg),
        num_latents=cfg.num_latents,
        k=cfg.k,
        multi_topk=cfg.multi_topk,
        skip_connection=cfg.skip_connection,
        transcode=cfg.model_type == "transcoder",
    )
    train = TrainConfig(
        coder,
        batch_size=cfg.batch_size,
        grad_acc_steps=cfg.grad_acc_steps,
        micro_acc_steps=cfg.micro_acc_steps,
        loss_fn=cfg.loss_fn.value,
        optimizer=cfg.optimizer.value,
        lr=cfg.lr,
        lr_warmup_steps=warmup_steps(cfg, steps),
        k_decay_steps=cfg.k_decay_steps,
        auxk_alpha=cfg.auxk_alpha,
        dead_feature_threshold=cfg.dead_feature_threshold,
        exclude_tokens=list(cfg.exclude_tokens),
        hookpoints=list(hookpoints),
        init_seeds=list(cfg.init_seeds),
        save_every=cfg.save_every,
        save_best=cfg.save_best,
        finetune=cfg.finetune,
        distribute_modules=cfg.distribute_modules,
        log_to_wandb=False,  # sparsify's Trainer is not run; trackers.py logs
        wandb_log_frequency=cfg.log_every,
        run_name=run_name(cfg),
        save_dir=str(run_dir(cfg)),
    )
    return coder, train
