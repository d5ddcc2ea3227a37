"""sparsify's own configs, optimizers and schedules for a run."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from schedulefree import ScheduleFreeWrapper
from transformers import get_linear_schedule_with_warmup

from sae_transcoder.coder.sparsify_parts import Muon, SignSGD, SparseCoder, SparseCoderConfig, TrainConfig
from sae_transcoder.config import Config, Optimizer, normalize_decoder, run_dir, run_name, warmup_steps
from sae_transcoder.data.run_length import RunLength


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


def automatic_lr(optimizer: Optimizer, num_latents: int) -> float:
    """sparsify's learning rate where none is set (trainer.py:149, 171, 199)."""
    if optimizer == Optimizer.muon:
        return 2e-3
    return {Optimizer.adam: 2e-4, Optimizer.signum: 5e-3}[optimizer] / (num_latents / 2**14) ** 0.5


def optimizers(cfg: Config, coders: Sequence[SparseCoder], length: RunLength) -> tuple[list[Any], list[Any]]:
    """sparsify's optimizers and schedules (trainer.py:128) for these coders, parameters in a fixed order.

    Adam is torch's also where bitsandbytes is installed, which sparsify would take; with corrections its fused one, which rounds otherwise.
    """
    rates = [cfg.lr or automatic_lr(cfg.optimizer, c.num_latents) for c in coders]
    groups = [dict(params=list(c.parameters()), lr=lr) for c, lr in zip(coders, rates, strict=True)]
    # sparsify's schedule spans batches and moves once per optimizer step.
    span = length.steps if cfg.corrections else length.samples // length.batch
    warmup = warmup_steps(cfg, length.steps)
    if cfg.optimizer == Optimizer.signum:
        averaged = ScheduleFreeWrapper(SignSGD(groups), momentum=0.95)
        averaged.train()
        return [averaged], []
    if cfg.optimizer == Optimizer.muon:
        decay = {} if cfg.weight_decay is None else {"weight_decay": cfg.weight_decay}
        params = [p for c in coders for p in c.parameters()]
        muon = Muon([p for p in params if p.ndim >= 2], lr=rates[0], ddp=False, **decay)
        adam = torch.optim.Adam([p for p in params if p.ndim < 2], lr=rates[0], fused=cfg.corrections)
        return [muon, adam], [
            get_linear_schedule_with_warmup(muon, 0, span),
            get_linear_schedule_with_warmup(adam, warmup, span),
        ]
    adam = torch.optim.Adam(groups, weight_decay=cfg.weight_decay or 0.0, fused=cfg.corrections)
    return [adam], [get_linear_schedule_with_warmup(adam, warmup, span)]


def step_together(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Has each optimizer make its step; fused Adams of equal settings make theirs in one call, whose kernels treat each tensor as alone."""
    alike: dict[Hashable, list[torch.optim.Adam]] = {}
    for optimizer in optimizers:
        if type(optimizer) is torch.optim.Adam and optimizer.defaults["fused"] and len(optimizers) > 1:
            alike.setdefault(repr([settings(group) for group in optimizer.param_groups]), []).append(optimizer)
        else:
            optimizer.step()
    for adams in alike.values():
        one = torch.optim.Adam([torch.zeros(())], fused=True)
        one.state = defaultdict(dict, {p: adam.state[p] for adam in adams for g in adam.param_groups for p in g["params"]})
        one.param_groups = [
            {**settings(groups[0]), "params": [p for group in groups for p in group["params"]]}
            for groups in zip(*(adam.param_groups for adam in adams), strict=True)
        ]
        one.step()
        for adam in adams:
            adam._opt_called = True  # type: ignore[attr-defined] # else its schedule warns that it steps before its optimizer


def settings(group: dict[str, Any]) -> dict[str, Any]:
    """What a group of parameters is trained by."""
    return {name: value for name, value in group.items() if name not in ("params", "initial_lr")}
