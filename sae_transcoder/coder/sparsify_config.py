"""sparsify's own configs for a run."""

from sae_transcoder.coder.sparsify_parts import SparseCoderConfig, TrainConfig
from sae_transcoder.config import Activation, Config, LrRule, normalize_decoder, run_dir, run_name, warmup_steps


def sparsify_configs(cfg: Config, hookpoints: list[str], steps: int) -> tuple[SparseCoderConfig, TrainConfig]:
    """sparsify's own configs for a run of `steps` optimizer steps on `hookpoints`; fields not listed have no counterpart here."""
    coder = SparseCoderConfig(
        # sparsify knows no others; what it computes from the files of these is the top-k.
        activation="groupmax" if cfg.activation == Activation.groupmax else "topk",
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
        lr=None if cfg.lr == LrRule.sparsify else cfg.lr,
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
        log_to_wandb=False,  # sparsify's Trainer is not run; trackers/ logs
        wandb_log_frequency=cfg.log_every,
        run_name=run_name(cfg),
        save_dir=str(run_dir(cfg)),
    )
    return coder, train
