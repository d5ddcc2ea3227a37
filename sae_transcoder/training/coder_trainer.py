"""One run: its coders, optimizers, schedules and counters; it is handed activations, batch by batch."""

import copy
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_model
from schedulefree import ScheduleFreeWrapper
from torch import Tensor
from transformers import PreTrainedModel

from sae_transcoder.coder import positions
from sae_transcoder.coder.corrected_coder import CorrectedCoder, ForwardOutput, SparseCoder
from sae_transcoder.coder.names import coder_names, coders_by_seed, seed_of
from sae_transcoder.coder.sparsify_config import optimizers, sparsify_configs, step_together
from sae_transcoder.config import Config
from sae_transcoder.data.run_length import run_length
from sae_transcoder.distributed import ALONE, Ranks
from sae_transcoder.language_model.forward import Activations, end_to_end_loss, spliced_output
from sae_transcoder.training.read_ahead import read_ahead


def fitting_k(coder: SparseCoder, k: int) -> int:
    """The smallest number of active latents from `k` on that the coder can have: at most all, for groupmax a divisor of them."""
    k = min(k, coder.num_latents)
    if coder.cfg.activation == "groupmax":
        k = next(divisor for divisor in range(k, coder.num_latents + 1) if coder.num_latents % divisor == 0)
    return k


class Task(NamedTuple):
    """A coder's part of a batch."""

    name: str
    coder: SparseCoder
    x: Tensor  # its inputs [token, d_in]
    y: Tensor  # and targets [token, d], this rank's
    variance: Tensor  # what squared errors are divided by
    dead: dict[str, Tensor]  # which latents AuxK may use, as the coder's forward takes them

    def pieces(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets in so many pieces, none where there is no token."""
        return zip(self.x.chunk(count), self.y.chunk(count), strict=True) if len(self.y) else iter(())


class CoderTrainer:
    """One run of a pack. Between two calls of `train_on` everything in it is consistent.

    Where ranks share each batch, each holds all of it and is handed its own sequences; coders, optimizers, counters and what `metrics`
    returns are the same on all of them, gradients, losses and `fired` are a rank's own until they are added up.
    """

    def __init__(
        self,
        cfg: Config,
        widths: Mapping[str, int],
        samples: int,
        device: torch.device,
        start_from: Mapping[str, Path] = MappingProxyType({}),
        ranks: Ranks = ALONE,
        share: Collection[str] | None = None,
    ):
        """widths: {hookpoint: d}; samples: sequences there are to train on; start_from: {coder: folder of its weights};
        ranks: those that share each batch; share: the hookpoints whose coders are trained here, None: all."""
        self.cfg, self.device, self.ranks = cfg, device, ranks
        self.length = run_length(cfg, samples, ranks.size)
        self.coder_config, self.train_config = sparsify_configs(cfg, list(widths), self.length.steps)
        kind = CorrectedCoder if cfg.corrections else SparseCoder
        self.names = [name for point in widths for name in coder_names(point, cfg.init_seeds)]  # on all ranks
        self.points = [point for point in widths if share is None or point in share]
        self.coders: dict[str, SparseCoder] = {}
        for point in self.points:
            for seed, name in zip(cfg.init_seeds, coder_names(point, cfg.init_seeds), strict=True):
                torch.manual_seed(seed)
                # Each has a config of its own, since k changes in it.
                self.coders[name] = kind(widths[point], copy.copy(self.coder_config), device, dtype=torch.float32)
        self.most_latents = max(cfg.num_latents or width * cfg.expansion_factor for width in widths.values())  # on all ranks
        first = next(iter(widths.values()))
        self.first_k = min(cfg.num_latents or first * cfg.expansion_factor, round(first * 10))
        self.optimizers, self.schedules = optimizers(cfg, list(self.coders.values()), self.length)
        self.batch = self.step = self.tokens = self.rows_in_batch = 0
        self.biases_set: set[str] = set()  # coders whose biases were set from data
        for name in self.coders.keys() & start_from.keys():
            load_model(self.coders[name], start_from[name] / "sae.safetensors", device=str(device))
            self.biases_set.add(name)
        self.tokens_since_fired = {n: torch.zeros(c.num_latents, dtype=torch.long, device=device) for n, c in self.coders.items()}
        # One place more than there are latents: chosen latents that are not above zero write there.
        self.fired = {n: torch.zeros(c.num_latents + 1, dtype=torch.bool, device=device) for n, c in self.coders.items()}
        self.tokens_in_step: dict[str, Tensor | int] = dict.fromkeys(self.coders, 0)  # in the current step
        self.losses = ["fvu", *(["auxk"] if cfg.auxk_alpha > 0 else []), *(["multi_topk_fvu"] if cfg.multi_topk else [])]
        self.dead: dict[str, Tensor] | None = None  # {coder: rows of latents that AuxK may use in this step}; None: not read yet
        # Since the last line of metrics: {"fvu/<coder>": ...}, and over how many batches, {"<coder>": ...}.
        self.sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=device))
        self.summed: dict[str, int] = defaultdict(int)
        # In the last optimizer step; the rate is that of the first coder, with muon of its matrices.
        self.lr_used, self.k_used = 0.0, 0
        self._set_k()

    @property
    def done(self) -> bool:
        """Whether all batches were trained on."""
        return self.batch >= self.length.batches

    @property
    def batches_in_step(self) -> int:
        """Batches that make up the current optimizer step; the last step may have fewer."""
        if not self.cfg.corrections:
            return self.cfg.grad_acc_steps
        return min(self.cfg.grad_acc_steps, self.length.batches - self.step * self.cfg.grad_acc_steps)

    def k(self) -> int:
        """Active latents in the current step: from min(latents, 10 x width), linearly to `k` over `k_decay_steps`."""
        # sparsify counts batches, and lags by one.
        done = self.step if self.cfg.corrections else max(0, self.batch - 1)
        if done >= self.cfg.k_decay_steps:
            return self.cfg.k
        progress = done / self.cfg.k_decay_steps
        return round(self.first_k * (1 - progress) + self.cfg.k * progress)

    def _set_k(self) -> None:
        k = self.k()
        for coder in self.coders.values():
            coder.cfg.k = fitting_k(coder, k) if self.cfg.corrections else k

    def train_on(self, tokens: Tensor, seen: Mapping[str, Activations]) -> bool:
        """Trains on the batch `tokens` [batch, position], on the host, and its activations {hookpoint: ...}; true if an optimizer step was
        made."""
        for task in self.tasks(tokens, seen):
            self.backward(task)
        return self.end_batch(tokens.shape[1])

    def tasks(self, tokens: Tensor, seen: Mapping[str, Activations]) -> list[Task]:
        """What is to be done for the batch, by coder, each made ready for it."""
        cfg, alike = self.cfg, positions.key(self.cfg)  # runs that agree in it share what follows
        read_ahead([self], tokens, seen)

        def kept(here: Activations) -> Tensor | None:
            return here.cached(alike, lambda: positions.kept(cfg, here, positions.counted(cfg, tokens), self.ranks))

        def taken(here: Activations) -> tuple[Tensor, Tensor]:
            return positions.pair(cfg, here, kept(here))

        pairs = {p: seen[p].cached(("pair", alike), partial(taken, seen[p])) for p in self.points}
        self.rows_in_batch, *counts = self.ranks.totals([len(tokens), *(len(y) for _, y in pairs.values())])
        tasks = []
        for (point, (x, y)), count in zip(pairs.items(), counts, strict=True):
            if count:
                variance = seen[point].cached(("variance", cfg.corrections, alike), partial(self._variance, y, count))
                for name in coder_names(point, cfg.init_seeds):
                    tasks.append(Task(name, self.coders[name], x, y, variance, self._ready(name, x, y, count)))
        return tasks

    def _mean(self, values: Tensor, count: int) -> Tensor:
        """The mean [d] of the `count` tokens of a batch, of which `values` [token, d] are this rank's."""
        return values.mean(0) if self.ranks.size == 1 else self.ranks.add(values.sum(0)) / count

    def _variance(self, y: Tensor, count: int) -> Tensor:
        """What squared errors are divided by: the total variance of all tokens of the batch; sparsify takes a rank's own."""
        if not self.cfg.corrections:
            return (y - y.mean(0)).pow(2).sum()
        return self.ranks.add((y - self._mean(y, count)).pow(2).sum())

    def backward(self, task: Task) -> None:
        """A coder's forward and backward on its part of the batch."""
        for x, y in task.pieces(self.cfg.micro_acc_steps):
            out = task.coder(x=x, y=y, total_variance=task.variance, **task.dead)
            self.loss(task, out).backward()
            self.count(task.name, out, acts=bool(task.dead))

    def loss(self, task: Task, out: ForwardOutput) -> Tensor:
        """The share of the optimizer step's loss that a coder's output has."""
        loss = out.fvu
        if task.dead:
            loss = loss + self.cfg.auxk_alpha * out.auxk_loss
        if self.cfg.multi_topk:
            loss = loss + out.multi_topk_fvu / 8
        # sparsify divides by the pieces once more, though each is a share of the batch's loss already.
        divisor = self.batches_in_step * (1 if self.cfg.corrections else self.cfg.micro_acc_steps)
        return loss if divisor == 1 else loss / divisor

    def train_end_to_end(self, model: PreTrainedModel, tokens: Tensor, there: Tensor) -> bool:
        """Trains on the batch `tokens` [batch, position], on the host, `there` the same on the device, by the loss of `model` with the coders'
        outputs in place of the modules'; each seed in a forward of its own. True if an optimizer step was made."""
        cfg, (self.rows_in_batch,) = self.cfg, self.ranks.totals([len(tokens)])
        read_ahead([self], tokens, {})
        share = len(tokens) / self.rows_in_batch if cfg.corrections else 1.0  # of the batch's loss
        if not len(tokens):  # the other ranks wait in the forward: one sequence, of which nothing counts
            there, mask = there.new_zeros(1, tokens.shape[1]), tokens.new_zeros(tokens.shape[1], dtype=torch.bool)
        else:
            mask = positions.counted(self.cfg, tokens)  # type: ignore[assignment]
        for names in coders_by_seed(self.coders):
            own_losses: list[Tensor] = []  # losses of the coders themselves

            def replace(
                point: str, seen: Activations, names: dict[str, str] = names, own_losses: list[Tensor] = own_losses
            ) -> Tensor:
                name, coder = names[point], self.coders[names[point]]
                kept = positions.kept(
                    cfg, seen, mask, self.ranks
                )  # with max_norm_multiple it waits: norms follow from earlier coders
                x, y = positions.pair(cfg, seen, kept)
                y = y.detach()
                (count,) = self.ranks.totals([len(y)])
                if not count:
                    return seen.output
                variance, dead = self._variance(y, count), self._ready(name, x.detach(), y, count)
                if not len(y):
                    return seen.output
                out = coder(x=x, y=y, total_variance=variance, **dead)
                self.count(name, out, acts=bool(dead))
                if cfg.corrections:  # sparsify leaves them out
                    own_losses.append(cfg.auxk_alpha * out.auxk_loss + out.multi_topk_fvu / 8)
                # sparsify cuts the gradient that reaches earlier coders through positions left out.
                output = seen.output if cfg.corrections else seen.output.detach()
                return spliced_output(output, kept, out.sae_out)

            loss = end_to_end_loss(model, there, list(names), replace, cfg.loss_fn)
            if loss.requires_grad:  # else every token of the batch was excluded
                (loss * share + sum(own_losses)).div(self.batches_in_step).backward()
            seed = seed_of(next(iter(names.values())))
            self.sums["/".join([cfg.loss_fn, *filter(None, [seed])])] += loss.detach() * share
            self.summed[seed] += 1
        return self.end_batch(tokens.shape[1])

    @property
    def _aux_acts(self) -> bool:
        """Whether AuxK may act in this batch."""
        return self.cfg.auxk_alpha > 0 and self.tokens > self.cfg.dead_feature_threshold  # before, none can be dead

    def idle(self) -> dict[str, Tensor]:
        """{coder: which latents have not fired for so long that AuxK may use them [latent]}, of coders that are told by their rows."""
        return self._dead_masks() if self._aux_acts and self.cfg.corrections else {}

    def _dead_masks(self) -> dict[str, Tensor]:
        return {name: idle > self.cfg.dead_feature_threshold for name, idle in self.tokens_since_fired.items()}

    def _ready(self, name: str, x: Tensor, y: Tensor, count: int) -> dict[str, Tensor]:
        """Makes the coder ready for a batch and counts it; returns which latents AuxK may use, as the coder's forward takes them."""
        coder = self.coders[name]
        if name not in self.biases_set:
            self._start(name, coder, x, y, count)
        self.tokens_in_step[name] += count
        self.summed[name] += 1
        for loss in self.losses:
            _ = self.sums[f"{loss}/{name}"]  # there also where no token is this rank's
        if self.coder_config.normalize_decoder:
            coder.set_decoder_norm_to_unit_norm()
        if not self._aux_acts:
            return {}
        if not self.cfg.corrections:
            return {"dead_mask": self._dead_masks()[name]}
        assert self.dead is not None
        dead = self.dead.get(name)
        return {} if dead is None or not len(dead) else {"dead": dead}

    def count(self, name: str, out: ForwardOutput, *, acts: bool) -> None:
        """Notes which latents fired, and the losses; acts: whether AuxK did."""
        chosen = out.latent_indices
        if self.cfg.corrections:
            chosen = torch.where(out.latent_acts > 0, chosen, self.coders[name].num_latents)
        self.fired[name].scatter_(0, chosen.flatten(), True)
        values = {"fvu": out.fvu, "auxk": out.auxk_loss, "multi_topk_fvu": out.multi_topk_fvu}
        for loss in self.losses if acts else [loss for loss in self.losses if loss != "auxk"]:
            self.sums[f"{loss}/{name}"] += values[loss].detach()

    def end_batch(self, positions: int, *, steps: bool = True) -> bool:
        """Counts the batch, whose sequences have so many positions; true if an optimizer step is due, which is made unless `steps` is false."""
        self.tokens += self.rows_in_batch * positions
        self.batch += 1
        due = self.batch % self.cfg.grad_acc_steps == 0 or (self.cfg.corrections and self.done)
        if due and steps:
            optimizer_step([self])
        return due

    def _start(self, name: str, coder: SparseCoder, x: Tensor, y: Tensor, count: int) -> None:
        """Sets the biases from the first tokens, so that pre-activations are centred (trainer.py:423)."""
        self.biases_set.add(name)
        if self.coder_config.transcode:
            coder.encoder.bias.data = -self._mean(x, count) @ coder.encoder.weight.data.T
        coder.b_dec.data = self._mean(y, count)

    def _add_up(self) -> None:
        """Makes gradients and `fired` of the current step, so far a rank's own, those of all ranks."""
        for name, coder in self.coders.items():
            if self.ranks.size == 1 or not self.tokens_in_step[name]:
                continue
            params = list(coder.parameters())
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in params])
            self.ranks.add(flat)
            if not self.cfg.corrections:
                flat /= self.ranks.size
            for param, gradient in zip(params, flat.split([p.numel() for p in params]), strict=True):
                param.grad = gradient.view_as(param)
            self.fired[name] = self.ranks.add(self.fired[name].int()).bool()

    def before_optimizers(self) -> list[torch.optim.Optimizer]:
        """Makes gradients those of the step; returns the optimizers that are to step by them."""
        self._add_up()
        for coder in self.coders.values():
            if self.coder_config.normalize_decoder and coder.W_dec.grad is not None:
                coder.remove_gradient_parallel_to_decoder_directions()
        self.lr_used = self.optimizers[0].param_groups[0]["lr"]
        self.k_used = next(iter(self.coders.values())).cfg.k
        # Else every token of the step was excluded.
        return self.optimizers if any(c.b_dec.grad is not None for c in self.coders.values()) else []

    def after_optimizers(self) -> None:
        """Counts the step, once the optimizers have made it."""
        for schedule in self.schedules:
            schedule.step()
        for name, idle in self.tokens_since_fired.items():
            idle += self.tokens_in_step[name]
            idle.masked_fill_(self.fired[name][:-1], 0)
            self.fired[name].zero_()
            self.tokens_in_step[name] = 0
        self.dead = None
        self.step += 1
        self._set_k()

    def metrics(self) -> dict[str, float]:
        """Losses averaged over the batches since the last call, and dead fractions now; reads from the device once. Of its own coders only,
        where each rank trains a share of them."""
        names, sums = list(self.sums), [*self.sums.values()]
        if self.ranks.size > 1 and sums:
            sums = [*self.ranks.add(torch.stack(sums)) / (1 if self.cfg.corrections else self.ranks.size)]
        dead = [(idle > self.cfg.dead_feature_threshold).float().mean() for idle in self.tokens_since_fired.values()]
        values = torch.stack([*sums, *dead]).tolist()
        averaged = {name: value / self.summed[name.partition("/")[2]] for name, value in zip(names, values, strict=False)}
        averaged |= {f"dead_fraction/{n}": v for n, v in zip(self.tokens_since_fired, values[len(names) :], strict=True)}
        self.sums.clear()
        self.summed.clear()
        return averaged

    def state(self) -> dict[str, Any]:
        """All that the rest of the run depends on, also amid an accumulation; refers to the run's own tensors."""
        return {
            "counts": [self.batch, self.step, self.tokens, self.k_used, self.lr_used],
            "biases_set": sorted(self.biases_set),
            "coders": {name: coder.state_dict() for name, coder in self.coders.items()},
            "gradients": {name: [p.grad for p in coder.parameters()] for name, coder in self.coders.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedules": [schedule.state_dict() for schedule in self.schedules],
            "tokens_since_fired": self.tokens_since_fired,
            "fired": self.fired,
            "tokens_in_step": self.tokens_in_step,
            "sums": dict(self.sums),
            "summed": dict(self.summed),
        }

    def own_state(self) -> dict[str, Any]:
        """The part of `state()` in which ranks that share each batch differ."""
        return {name: value for name, value in self.state().items() if name in ("gradients", "fired", "sums")}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from what `state()` returned in an equal run; its tensors may lie on another device."""
        self.batch, self.step, self.tokens, self.k_used, self.lr_used = state["counts"]
        self.biases_set = set(state["biases_set"])
        for name, coder in self.coders.items():
            coder.load_state_dict(state["coders"][name])
            for parameter, gradient in zip(coder.parameters(), state["gradients"][name], strict=True):
                parameter.grad = None if gradient is None else gradient.to(self.device)
        for part, kept in zip(self.optimizers + self.schedules, state["optimizers"] + state["schedules"], strict=True):
            part.load_state_dict(kept)
        for name in self.coders:
            self.tokens_since_fired[name].copy_(state["tokens_since_fired"][name])
            self.fired[name].copy_(state["fired"][name])
        self.tokens_in_step = state["tokens_in_step"]
        self.dead = None
        self.sums.update({name: value.to(self.device) for name, value in state["sums"].items()})
        self.summed.update(state["summed"])
        self._set_k()

    def release(self) -> None:
        """Gives back the memory of coders and optimizers; the counts stay."""
        for optimizer in self.optimizers:  # their schedules refer to them, and they to these
            optimizer.state.clear()
            optimizer.param_groups.clear()
        self.optimizers, self.schedules = [], []
        for held in (self.coders, self.tokens_since_fired, self.fired, self.tokens_in_step, self.sums):
            held.clear()  # type: ignore[attr-defined]

    def exported(self) -> dict[str, SparseCoder]:
        """Copies of the coders as they are published: signum's averaged, decoder rows at norm 1 where that is asked for, the final k."""
        params = [p for c in self.coders.values() for p in c.parameters()]
        kept = []
        for optimizer in self.optimizers:
            if isinstance(optimizer, ScheduleFreeWrapper):
                kept = [p.detach().clone() for p in params]  # its way there and back is not exact
                optimizer.eval()
        copies = copy.deepcopy(self.coders)
        for copied in copies.values():
            copied.requires_grad_(False)
            copied.cfg.k = self.cfg.k
            if self.cfg.corrections and copied.cfg.normalize_decoder:
                copied.set_decoder_norm_to_unit_norm()
        for optimizer in self.optimizers:
            if isinstance(optimizer, ScheduleFreeWrapper):
                optimizer.train()
        with torch.no_grad():
            for param, value in zip(params, kept, strict=False):
                param.copy_(value)
        return copies


def optimizer_step(runs: Sequence[CoderTrainer]) -> None:
    """An optimizer step of runs, their optimizers' kernels launched together."""
    optimizers = [optimizer for run in runs for optimizer in run.before_optimizers()]
    step_together(optimizers)
    for optimizer in optimizers:
        optimizer.zero_grad()
    for run in runs:
        run.after_optimizers()
