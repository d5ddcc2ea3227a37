"""One run's coders, optimizers, schedules and counters, which train on activations, batch by batch."""

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from sae_transcoder.coder.activation_scales import Scales, find_scales, to_scaled
from sae_transcoder.coder.batch_top_k_coder import BatchTopKCoder
from sae_transcoder.coder.build_optimizers import iterates, optimizers, step_together
from sae_transcoder.coder.corrected_coder import CoderOutput
from sae_transcoder.coder.jump_relu_coder import JumpReLUCoder
from sae_transcoder.coder.names import coder_names
from sae_transcoder.coder.positions import PositionFilter
from sae_transcoder.coder.sparsify_config import sparsify_configs
from sae_transcoder.config import BiasInit, Config, NormalizeActivations, num_latents
from sae_transcoder.config.run_length import run_length
from sae_transcoder.distributed import ALONE, Ranks
from sae_transcoder.language_model.forward import Activations
from sae_transcoder.training import losses
from sae_transcoder.training.averages import Averages
from sae_transcoder.training.k_schedule import k_at, valid_k
from sae_transcoder.training.new_coders import load_start, new_coders
from sae_transcoder.training.task import Task


class CoderTrainer:
    """The coders of one run and all that trains them. Between two batches its counters, weights and gradients agree.

    Ranks that share each batch hold all coders, and each trains on sequences of its own. Coders, optimizers, counters and what `metrics`
    returns are then the same on all of them; gradients, losses and `fired` are per rank until all-reduced.
    """

    def __init__(
        self,
        cfg: Config,
        widths: Mapping[str, int],
        num_samples: int,
        device: torch.device,
        start_from: Mapping[str, Path] = MappingProxyType({}),
        batch_ranks: Ranks = ALONE,
        local_hookpoints: Collection[str] | None = None,
    ):
        """widths: {hookpoint: d}; num_samples: sequences there are to train on; start_from: {coder: folder of its weights};
        batch_ranks: those that share each batch; local_hookpoints: those whose coders are trained here, None: all."""
        self.cfg, self.device, self.batch_ranks = cfg, device, batch_ranks
        self.positions = PositionFilter.of(cfg)
        self.length = run_length(cfg, num_samples, batch_ranks.size)
        self.coder_config, self.train_config = sparsify_configs(cfg, list(widths), self.length.steps)
        self.names = [name for point in widths for name in coder_names(point, cfg.init_seeds)]  # on all ranks
        self.hookpoints = [point for point in widths if local_hookpoints is None or point in local_hookpoints]
        self.coders = new_coders(cfg, self.coder_config, {point: widths[point] for point in self.hookpoints}, self.length, device)
        self.max_latents = max(num_latents(cfg, width) for width in widths.values())  # on all ranks
        first_width = next(iter(widths.values()))
        self.k_start = min(num_latents(cfg, first_width), round(first_width * 10))
        self.optimizers, self.schedules = optimizers(cfg, list(self.coders.values()), self.length)
        self.batch = self.step = self.tokens = self.rows_in_batch = 0
        self.biases_set: set[str] = set()  # coders whose biases are not to be set from data any more
        self.scales: dict[str, Scales] = {}  # of hookpoints whose activations are normalised, from their first batch on
        # {coder that starts from a stored one: whether its thresholds do}
        self.started_from = {
            name: load_start(self.coders[name], start_from[name]) for name in self.coders.keys() & start_from.keys()
        }
        self.biases_set.update(self.coders if cfg.b_dec_init == BiasInit.zeros else self.started_from)
        self.tokens_since_fired = {n: torch.zeros(c.num_latents, dtype=torch.long, device=device) for n, c in self.coders.items()}
        # In the current step. One place more than there are latents: selected latents that are not above zero write there.
        self.fired = {n: torch.zeros(c.num_latents + 1, dtype=torch.bool, device=device) for n, c in self.coders.items()}
        self.tokens_in_step: dict[str, Tensor | int] = dict.fromkeys(self.coders, 0)
        self.logged_names = {name: losses.logged_names(cfg, coder.d_in) for name, coder in self.coders.items()}
        # {coder: latents that AuxK may use in this step [row], all or those of each dictionary}; None: not read from the device yet.
        self.dead_latents: dict[str, list[Tensor]] | None = None
        self.averages = Averages(device)
        # In the last optimizer step; the rate is that of the first coder, with muon of its matrices.
        self.lr_used, self.k_used = 0.0, 0
        self.set_k()

    @property
    def done(self) -> bool:
        """Whether the run has trained on all batches."""
        return self.batch >= self.length.batches

    @property
    def batches_in_step(self) -> int:
        """Batches that make up the current optimizer step; the last step may have fewer."""
        if not self.cfg.corrections:
            return self.cfg.grad_acc_steps
        return min(self.cfg.grad_acc_steps, self.length.batches - self.step * self.cfg.grad_acc_steps)

    def set_k(self) -> None:
        """Sets each coder's number of active latents to that of the current step."""
        # sparsify counts batches, and lags by one.
        k = k_at(self.cfg, self.k_start, self.step if self.cfg.corrections else max(0, self.batch - 1))
        for coder in self.coders.values():
            coder.cfg.k = valid_k(coder, k) if self.cfg.corrections else k

    def tasks(self, tokens: Tensor, activations: Mapping[str, Activations]) -> list[Task]:
        """Prepares each coder for the batch `tokens` [batch, position], on the host, with activations {hookpoint: ...}; returns its work."""
        pairs = {p: self.positions.training_pairs(activations[p], tokens, self.batch_ranks) for p in self.hookpoints}
        self.rows_in_batch, *counts = self.batch_ranks.sum_integers([len(tokens), *(len(y) for _, y in pairs.values())])
        tasks = []
        for (point, (x, y)), count in zip(pairs.items(), counts, strict=True):
            if self.is_enough(count):
                scales = self.scales_of(point, x, y, count)
                if scales is not None:
                    x, y = activations[point].cached(("scaled", scales, self.positions), partial(scales.scaled, x, y))
                key = "variance", self.cfg.corrections, scales, self.positions
                variance = activations[point].cached(key, partial(self.variance, y, count))
                for name in coder_names(point, self.cfg.init_seeds):
                    tasks.append(Task(name, self.coders[name], x, y, count, variance, self.prepare(name, x, y, count)))
        return tasks

    def is_enough(self, count: int) -> bool:
        """Whether a batch of `count` counted tokens can be trained on: a single one has no variance that its error could be divided by."""
        return count > (1 if self.cfg.corrections else 0)

    def _mean(self, values: Tensor, count: int) -> Tensor:
        """The mean [d] of the `count` tokens of a batch, of which `values` [token, d] are this rank's."""
        return values.mean(0) if self.batch_ranks.size == 1 else self.batch_ranks.all_reduce(values.sum(0)) / count

    def variance(self, y: Tensor, count: int) -> Tensor:
        """What squared errors are divided by: the total variance of all `count` tokens of the batch; sparsify takes a rank's own."""
        if not self.cfg.corrections:
            return (y - y.mean(0)).pow(2).sum()
        return self.batch_ranks.all_reduce((y - self._mean(y, count)).pow(2).sum())

    def backward(self, task: Task) -> None:
        """A coder's forward and backward on its part of the batch."""
        for x, y, given in task.micro_batches(self.cfg.micro_acc_steps, self.batch_ranks):
            out = CoderOutput(*task.coder(x=x, y=y, total_variance=task.variance, **given))
            self.loss(task.num_tokens, out).backward()
            self.record(task.name, task.num_tokens, out, auxk_acts=bool(task.dead))

    def loss(self, num_tokens: int, out: CoderOutput) -> Tensor:
        """What a coder's output adds to the optimizer step's loss, in a batch of so many tokens."""
        loss = losses.loss(self.cfg, self.step, num_tokens, out)
        # sparsify divides by the micro-batches once more, though each adds its part of the batch's loss already.
        divisor = self.batches_in_step * (1 if self.cfg.corrections else self.cfg.micro_acc_steps)
        return loss if divisor == 1 else loss / divisor

    def dead_masks_to_read(self) -> dict[str, list[Tensor]]:
        """{coder: mask of the latents that have not fired for so long that AuxK may use them [latent], or one for the new latents of each
        dictionary}, for coders that take them by index."""
        if not self._auxk_may_act or not self.cfg.corrections:
            return {}
        masks = self._dead_masks()
        if not self.cfg.auxk_per_level:
            return {name: [mask] for name, mask in masks.items()}
        coders = self.coders
        return {
            name: [mask & (coders[name].part_of_latent == part) for part in range(len(coders[name].matryoshka_widths))]
            for name, mask in masks.items()
        }

    def _dead_masks(self) -> dict[str, Tensor]:
        return {name: count > self.cfg.dead_feature_threshold for name, count in self.tokens_since_fired.items()}

    @property
    def _auxk_may_act(self) -> bool:
        return self.cfg.auxk_alpha > 0 and self._some_may_be_dead

    @property
    def _some_may_be_dead(self) -> bool:
        return self.tokens > self.cfg.dead_feature_threshold

    def prepare(self, name: str, x: Tensor, y: Tensor, count: int) -> dict[str, Tensor | Sequence[Tensor]]:
        """Prepares a coder for a batch of `count` tokens and counts it; returns which latents AuxK may use, as the coder's forward takes them."""
        coder = self.coders[name]
        if name not in self.biases_set:
            self.set_biases(name, x, y, count)
        self.tokens_in_step[name] += count
        self.averages.begin_batch(name, self.logged_names[name])
        if self.coder_config.normalize_decoder:
            coder.set_decoder_norm_to_unit_norm()
        if not self._auxk_may_act:
            return {}
        if not self.cfg.corrections:
            return {"dead_mask": self._dead_masks()[name]}
        assert self.dead_latents is not None, "read_ahead comes first"
        dead = self.dead_latents.get(name, [])
        return {"dead": dead} if any(len(group) for group in dead) else {}

    def set_biases(self, name: str, x: Tensor, y: Tensor, count: int) -> None:
        """Sets the coder's biases from its first tokens, so that pre-activations are centred (sparsify's trainer.py:423)."""
        coder = self.coders[name]
        self.biases_set.add(name)
        if self.coder_config.transcode:
            coder.encoder.bias.data = -self._mean(x, count) @ coder.encoder.weight.data.T
        coder.b_dec.data = self._mean(y, count)

    def scales_of(self, hookpoint: str, x: Tensor, y: Tensor, count: int) -> Scales | None:
        """What inputs and targets at a hookpoint are multiplied with, estimated from its first batch of `count` tokens; None for nothing."""
        if self.cfg.normalize_activations == NormalizeActivations.none:
            return None
        if hookpoint not in self.scales:
            self.scales[hookpoint] = find_scales(x, y, count, self.batch_ranks)
            for name in coder_names(hookpoint, self.cfg.init_seeds):
                if name in self.started_from:
                    to_scaled(self.coders[name], self.scales[hookpoint], thresholds=self.started_from[name])
        return self.scales[hookpoint]

    def record(self, name: str, num_tokens: int, out: CoderOutput, *, auxk_acts: bool) -> None:
        """Records the losses of a batch of so many tokens, and which latents fired."""
        indices = out.latent_indices
        if self.cfg.corrections:
            indices = torch.where(out.latent_acts > 0, indices, self.coders[name].num_latents)
        self.fired[name].scatter_(0, indices.flatten(), True)
        values = losses.logged(self.cfg, self.coders[name].d_in, num_tokens, out)
        for loss in self.logged_names[name]:
            if auxk_acts or loss != "auxk":
                self.averages.add(loss, name, values[loss])

    def end_batch(self, num_positions: int) -> bool:
        """Counts the batch, whose sequences have so many positions; returns whether an optimizer step is due."""
        self.tokens += self.rows_in_batch * num_positions
        self.batch += 1
        return self.batch % self.cfg.grad_acc_steps == 0 or (self.cfg.corrections and self.done)

    def _reduce_over_ranks(self) -> None:
        """All-reduces the gradients and `fired` of the current step."""
        for name, coder in self.coders.items():
            if self.batch_ranks.size == 1 or not self.tokens_in_step[name]:
                continue
            params = list(coder.parameters())
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in params])
            self.batch_ranks.all_reduce(flat)
            if not self.cfg.corrections:
                flat /= self.batch_ranks.size
            for param, gradient in zip(params, flat.split([p.numel() for p in params]), strict=True):
                param.grad = gradient.view_as(param)
            self.fired[name] = self.batch_ranks.all_reduce(self.fired[name].int()).bool()

    def before_optimizers(self) -> list[torch.optim.Optimizer]:
        """Completes the gradients of the step; returns the optimizers that are to make it."""
        self._reduce_over_ranks()
        for coder in self.coders.values():
            if self.coder_config.normalize_decoder and coder.W_dec.grad is not None:
                coder.remove_gradient_parallel_to_decoder_directions()
            if self.cfg.grad_clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(coder.parameters(), self.cfg.grad_clip_norm)
        self.lr_used = self.optimizers[0].param_groups[0]["lr"]
        self.k_used = next(iter(self.coders.values())).cfg.k
        # Else every token of the step was excluded.
        return self.optimizers if any(c.b_dec.grad is not None for c in self.coders.values()) else []

    def after_optimizers(self) -> None:
        """Counts the step that the optimizers have made."""
        for schedule in self.schedules:
            schedule.step()
        for name, tokens_since_fired in self.tokens_since_fired.items():
            tokens_since_fired += self.tokens_in_step[name]
            tokens_since_fired.masked_fill_(self.fired[name][:-1], 0)
            self.fired[name].zero_()
            self.tokens_in_step[name] = 0
        for coder in self.coders.values():
            if isinstance(coder, JumpReLUCoder):
                coder.project(iterates(self.optimizers, coder.threshold))
        self.dead_latents = None
        self.step += 1
        self.set_k()

    def metrics(self) -> dict[str, float]:
        """Losses averaged over the batches since the last call, and dead fractions now, of the coders trained here: NaN until latents may be
        dead. Reads from the device once."""
        unknown = torch.full((), math.nan, device=self.device)
        now = {
            f"dead_fraction/{name}": mask.float().mean() if self._some_may_be_dead else unknown
            for name, mask in self._dead_masks().items()
        }
        for name, coder in self.coders.items():
            if isinstance(coder, BatchTopKCoder | JumpReLUCoder):
                now[f"threshold/{name}"] = coder.threshold.detach().mean()
        return self.averages.read(now, self.batch_ranks, mean_over_ranks=not self.cfg.corrections)


def optimizer_step(trainers: Sequence[CoderTrainer]) -> None:
    """Makes an optimizer step of several runs; their optimizers' kernels are launched together."""
    optimizers = [optimizer for trainer in trainers for optimizer in trainer.before_optimizers()]
    step_together(optimizers)
    for optimizer in optimizers:
        optimizer.zero_grad()
    for trainer in trainers:
        trainer.after_optimizers()
