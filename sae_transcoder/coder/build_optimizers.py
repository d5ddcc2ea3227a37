"""How each optimizer is built, with its learning-rate schedule. What checks and estimates know of them is in config/fields/optimizer.py."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from schedulefree import ScheduleFreeWrapper
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_constant_schedule_with_warmup, get_linear_schedule_with_warmup, get_wsd_schedule

from sae_transcoder.coder.muon import CorrectedMuon
from sae_transcoder.coder.sparsify_parts import Muon, SignSGD, SparseCoder
from sae_transcoder.config import OPTIMIZERS, Config, LrSchedule, Optimizer, learning_rate, warmup_steps
from sae_transcoder.config.run_length import RunLength


class Group(NamedTuple):
    """One coder's parameters and their learning rate."""

    params: list[Tensor]
    lr: float


class Built(NamedTuple):
    """An optimizer, and whether its rate rises in the run's warmup."""

    optimizer: Any
    warms_up: bool = True


def optimizers(cfg: Config, coders: Sequence[SparseCoder], length: RunLength) -> tuple[list[Any], list[Any]]:
    """sparsify's optimizers and schedules (trainer.py:128) for these coders, parameters in a fixed order."""
    facts = OPTIMIZERS[cfg.optimizer]
    groups = [Group(list(c.parameters()), learning_rate(cfg, c.num_latents, length.steps)) for c in coders]
    built = BUILDERS[cfg.optimizer](cfg, groups)
    if not facts.scheduled:
        return [optimizer for optimizer, _ in built], []
    # sparsify's schedule spans batches and moves once per optimizer step.
    span = length.steps if cfg.corrections else length.samples // length.batch
    warmup = warmup_steps(cfg, length.steps)
    schedules = [schedule(cfg, optimizer, warmup if warms_up else 0, span) for optimizer, warms_up in built]
    return [optimizer for optimizer, _ in built], schedules


def schedule(cfg: Config, optimizer: Any, warmup: int, steps: int) -> LambdaLR:
    """The schedule of an optimizer's rate over `steps` steps: 0 in the first where there is a warmup, and in the last the n-th part of the
    full rate where it falls linearly over n steps, as SAELens and SAEBench (dictionary_learning) have it."""
    if cfg.lr_schedule == LrSchedule.constant:
        return get_constant_schedule_with_warmup(optimizer, warmup)
    if cfg.lr_schedule == LrSchedule.linear and cfg.lr_decay_steps is None:
        return get_linear_schedule_with_warmup(optimizer, warmup, steps)  # sparsify's; the next one rounds otherwise
    decay = steps - warmup if cfg.lr_decay_steps is None else cfg.lr_decay_steps
    return get_wsd_schedule(optimizer, warmup, decay, steps, decay_type=cfg.lr_schedule.value)


def weight_decay(cfg: Config) -> float:
    """Weight decay as set, else the optimizer's own."""
    return (OPTIMIZERS[cfg.optimizer].weight_decay or 0.0) if cfg.weight_decay is None else cfg.weight_decay


def adam_settings(cfg: Config) -> dict[str, Any]:
    """What every Adam of a run has in common.

    eps: what is added to the root of a gradient's mean square: torch's 1e-8, multiplied by the norm that gradients are clipped to where
    it is below 1. Programs that clip to 1 have losses that are larger by the variance of a token. Clipped to as much less, the gradients of
    latents that fire rarely would not be large beside 1e-8, and these would hardly be trained (benchmarks/peers/synthetic.py, jumprelu).

    fused: with corrections torch's fused kernel, whose rounding differs; without them what torch takes by itself, as sparsify's: on a GPU its
    loops over lists of tensors, which round otherwise too.
    """
    return dict(eps=1e-8 * min(1.0, cfg.grad_clip_norm or 1.0), fused=cfg.corrections or None)


def adam(cfg: Config, groups: Sequence[Group]) -> list[Built]:
    """torch's Adam, also where bitsandbytes is installed, whose Adam sparsify would take."""
    param_groups = [group._asdict() for group in groups]
    first, second = cfg.adam_betas or (0.9, 0.999)
    return [Built(torch.optim.Adam(param_groups, betas=(first, second), weight_decay=weight_decay(cfg), **adam_settings(cfg)))]


def muon(cfg: Config, groups: Sequence[Group]) -> list[Built]:
    """Muon for the matrices, Adam for the biases; both at the first coder's rate."""
    kind = CorrectedMuon if cfg.corrections else Muon
    params, lr = [p for group in groups for p in group.params], groups[0].lr
    matrices = kind([p for p in params if p.ndim >= 2], lr=lr, ddp=False, weight_decay=weight_decay(cfg))
    biases = torch.optim.Adam([p for p in params if p.ndim < 2], lr=lr, **adam_settings(cfg))
    return [Built(matrices, warms_up=False), Built(biases)]


def signum(cfg: Config, groups: Sequence[Group]) -> list[Built]:
    """Sign descent inside schedulefree's wrapper, which keeps an average of the weights."""
    averaging = ScheduleFreeWrapper(SignSGD([group._asdict() for group in groups]), momentum=0.95)
    averaging.train()
    return [Built(averaging)]


BUILDERS: dict[Optimizer, Callable[[Config, Sequence[Group]], list[Built]]] = {
    Optimizer.adam: adam,
    Optimizer.muon: muon,
    Optimizer.signum: signum,
}


@contextmanager
def averaged_weights(optimizers: Sequence[Any], params: Sequence[Tensor]) -> Iterator[None]:
    """While it is open, the parameters of a schedule-free optimizer hold its average of the weights. Others are as they are."""
    averaging = [optimizer for optimizer in optimizers if isinstance(optimizer, ScheduleFreeWrapper)]
    # The wrapper's own way back to the weights is not exact.
    weights = [p.detach().clone() for p in params] if averaging else []
    for optimizer in averaging:
        optimizer.eval()
    try:
        yield
    finally:
        for optimizer in averaging:
            optimizer.train()
        with torch.no_grad():
            for param, weight in zip(params, weights, strict=False):
                param.copy_(weight)


def iterates(optimizers: Sequence[Any], param: Tensor) -> list[Tensor]:
    """A parameter, and with a schedule-free optimizer the weights whose average is published: where these leave a bound that the parameter is
    put back to, the average moves away from it."""
    states = [optimizer.state.get(param, {}) for optimizer in optimizers if isinstance(optimizer, ScheduleFreeWrapper)]
    return [param, *(state["z"] for state in states if "z" in state)]


def step_together(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Has each optimizer make its step. Fused Adams of equal settings step in one call, whose kernels treat each tensor as if alone."""
    equal_adams: dict[Hashable, list[torch.optim.Adam]] = {}
    for optimizer in optimizers:
        if type(optimizer) is torch.optim.Adam and optimizer.defaults["fused"] and len(optimizers) > 1:
            equal_adams.setdefault(repr([settings(group) for group in optimizer.param_groups]), []).append(optimizer)
        else:
            optimizer.step()
    for adams in equal_adams.values():
        joint = torch.optim.Adam([torch.zeros(())], fused=True)
        joint.state = defaultdict(dict, {p: adam.state[p] for adam in adams for g in adam.param_groups for p in g["params"]})
        joint.param_groups = [
            {**settings(groups[0]), "params": [p for group in groups for p in group["params"]]}
            for groups in zip(*(adam.param_groups for adam in adams), strict=True)
        ]
        joint.step()
        for adam in adams:
            adam._opt_called = True  # type: ignore[attr-defined] # else its schedule warns that it steps before its optimizer


def settings(group: dict[str, Any]) -> dict[str, Any]:
    """A parameter group's hyperparameters."""
    return {name: value for name, value in group.items() if name not in ("params", "initial_lr")}
