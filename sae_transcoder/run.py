"""One run: its coders, optimizers, schedules and counters; it is handed activations, batch by batch."""

import copy
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model
from schedulefree import ScheduleFreeWrapper
from torch import Tensor
from transformers import PreTrainedModel

from sae_transcoder import coder_names, positions
from sae_transcoder.config import Config
from sae_transcoder.language_model import Activations, end_to_end_loss, spliced_output
from sae_transcoder.sparsify_config import length, optimizers, sparsify_configs
from sae_transcoder.upstream import CorrectedCoder, ForwardOutput, SparseCoder


def fitting_k(coder: SparseCoder, k: int) -> int:
    """The smallest number of active latents from `k` on that the coder can have: at most all, for groupmax a divisor of them."""
    k = min(k, coder.num_latents)
    if coder.cfg.activation == "groupmax":
        k = next(divisor for divisor in range(k, coder.num_latents + 1) if coder.num_latents % divisor == 0)
    return k


class Run:
    """One run of a pack. Between two calls of `train_on` everything in it is consistent."""

    def __init__(
        self,
        cfg: Config,
        widths: Mapping[str, int],
        samples: int,
        device: torch.device,
        start_from: Mapping[str, Path] | None = None,
    ):
        """widths: {hookpoint: d}; samples: sequences there are to train on; start_from: {coder: folder of its weights}."""
        self.cfg, self.device = cfg, device
        self.length = length(cfg, samples)
        self.coder_config, self.train_config = sparsify_configs(cfg, list(widths), self.length.steps)
        kind = CorrectedCoder if cfg.corrections else SparseCoder
        self.coders: dict[str, SparseCoder] = {}
        for point, width in widths.items():
            for seed, name in zip(cfg.init_seeds, coder_names.names(point, cfg.init_seeds), strict=True):
                torch.manual_seed(seed)
                # Each has a config of its own, since k changes in it.
                self.coders[name] = kind(width, copy.copy(self.coder_config), device, dtype=torch.float32)
        self.first_k = min(next(iter(self.coders.values())).num_latents, round(next(iter(widths.values())) * 10))
        self.optimizers, self.schedules = optimizers(cfg, list(self.coders.values()), self.length)
        self.batch = self.step = self.tokens = 0
        self.biases_set: set[str] = set()  # coders whose biases were set from data
        for name, folder in (start_from or {}).items():
            load_model(self.coders[name], folder / "sae.safetensors", device=str(device))
            self.biases_set.add(name)
        self.tokens_since_fired = {n: torch.zeros(c.num_latents, dtype=torch.long, device=device) for n, c in self.coders.items()}
        # One place more than there are latents: chosen latents that are not above zero write there.
        self.fired = {n: torch.zeros(c.num_latents + 1, dtype=torch.bool, device=device) for n, c in self.coders.items()}
        self.tokens_in_step: dict[str, Tensor | int] = dict.fromkeys(self.coders, 0)  # in the current step
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
        """Trains on the batch `tokens` [batch, position] and its activations {hookpoint: ...}; true if an optimizer step was made."""
        cfg, mask = self.cfg, positions.counted(self.cfg, tokens)
        points = dict.fromkeys(map(coder_names.hookpoint, self.coders))
        pairs = {point: positions.pair(cfg, seen[point], positions.kept(cfg, seen[point], mask)) for point in points}
        for name, coder in self.coders.items():
            x, y = pairs[coder_names.hookpoint(name)]
            if len(y):
                self._backward(name, coder, x, y)
        return self._end_batch(tokens)

    def _backward(self, name: str, coder: SparseCoder, x: Tensor, y: Tensor) -> None:
        cfg, pieces = self.cfg, self.cfg.micro_acc_steps
        dead = self._ready(name, coder, x, y)
        total_variance = (y - y.mean(0)).pow(2).sum()
        # sparsify divides by the pieces once more, though each is a share of the batch's loss already.
        divisor = self.batches_in_step * (1 if cfg.corrections else pieces)
        for x_piece, y_piece in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
            out = coder(x=x_piece, y=y_piece, dead_mask=dead, total_variance=total_variance)
            loss = out.fvu + cfg.auxk_alpha * out.auxk_loss + out.multi_topk_fvu / 8
            loss.div(divisor).backward()
            self._count(name, coder, out)
        self.tokens_in_step[name] += len(y)
        self.summed[name] += 1

    def train_end_to_end(self, model: PreTrainedModel, tokens: Tensor) -> bool:
        """Trains on the batch `tokens` [batch, position] by the loss of `model` with the coders' outputs in place of the modules';
        each seed in a forward of its own. True if an optimizer step was made."""
        cfg, mask = self.cfg, positions.counted(self.cfg, tokens)
        for names in coder_names.by_seed(self.coders):
            own_losses: list[Tensor] = []  # losses of the coders themselves

            def replace(
                point: str, seen: Activations, names: dict[str, str] = names, own_losses: list[Tensor] = own_losses
            ) -> Tensor:
                name, coder = names[point], self.coders[names[point]]
                kept = positions.kept(cfg, seen, mask)
                x, y = positions.pair(cfg, seen, kept)
                y = y.detach()
                if not len(y):
                    return seen.output
                out = coder(x=x, y=y, dead_mask=self._ready(name, coder, x.detach(), y))
                self._count(name, coder, out)
                self.tokens_in_step[name] += len(y)
                self.summed[name] += 1
                if cfg.corrections:  # sparsify leaves them out
                    own_losses.append(cfg.auxk_alpha * out.auxk_loss + out.multi_topk_fvu / 8)
                # sparsify cuts the gradient that reaches earlier coders through positions left out.
                output = seen.output if cfg.corrections else seen.output.detach()
                return spliced_output(output, kept, out.sae_out)

            loss = end_to_end_loss(model, tokens, list(names), replace, cfg.loss_fn)
            if loss.requires_grad:  # else every token of the batch was excluded
                (loss + sum(own_losses)).div(self.batches_in_step).backward()
            seed = coder_names.seed(next(iter(names.values())))
            self.sums["/".join([cfg.loss_fn, *filter(None, [seed])])] += loss.detach()
            self.summed[seed] += 1
        return self._end_batch(tokens)

    def _ready(self, name: str, coder: SparseCoder, x: Tensor, y: Tensor) -> Tensor | None:
        """Makes the coder ready for a batch; the latents that AuxK may use, None for no AuxK."""
        if name not in self.biases_set:
            self._start(name, coder, x, y)
        if self.coder_config.normalize_decoder:
            coder.set_decoder_norm_to_unit_norm()
        if self.cfg.auxk_alpha == 0 or self.tokens <= self.cfg.dead_feature_threshold:  # none can be dead yet
            return None
        return self.tokens_since_fired[name] > self.cfg.dead_feature_threshold

    def _count(self, name: str, coder: SparseCoder, out: ForwardOutput) -> None:
        """Notes which latents fired, and the losses."""
        chosen = out.latent_indices
        if self.cfg.corrections:
            chosen = torch.where(out.latent_acts > 0, chosen, coder.num_latents)
        self.fired[name][chosen.flatten()] = True
        self.sums[f"fvu/{name}"] += out.fvu.detach()
        if self.cfg.auxk_alpha > 0:
            self.sums[f"auxk/{name}"] += out.auxk_loss.detach()
        if self.cfg.multi_topk:
            self.sums[f"multi_topk_fvu/{name}"] += out.multi_topk_fvu.detach()

    def _end_batch(self, tokens: Tensor) -> bool:
        self.tokens += tokens.numel()
        self.batch += 1
        if self.batch % self.cfg.grad_acc_steps == 0 or (self.cfg.corrections and self.done):
            self._optimizer_step()
            return True
        return False

    def _start(self, name: str, coder: SparseCoder, x: Tensor, y: Tensor) -> None:
        """Sets the biases from the first tokens, so that pre-activations are centred (trainer.py:423)."""
        self.biases_set.add(name)
        if self.coder_config.transcode:
            coder.encoder.bias.data = -x.mean(0) @ coder.encoder.weight.data.T
        coder.b_dec.data = y.mean(0)

    def _optimizer_step(self) -> None:
        for coder in self.coders.values():
            if self.coder_config.normalize_decoder and coder.W_dec.grad is not None:
                coder.remove_gradient_parallel_to_decoder_directions()
        self.lr_used = self.optimizers[0].param_groups[0]["lr"]
        self.k_used = next(iter(self.coders.values())).cfg.k
        if any(c.b_dec.grad is not None for c in self.coders.values()):  # else every token of the step was excluded
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
        for schedule in self.schedules:
            schedule.step()
        for name, idle in self.tokens_since_fired.items():
            idle += self.tokens_in_step[name]
            idle[self.fired[name][:-1]] = 0
            self.fired[name].zero_()
            self.tokens_in_step[name] = 0
        self.step += 1
        self._set_k()

    def metrics(self) -> dict[str, float]:
        """Losses averaged over the batches since the last call, and dead fractions now; reads from the device once."""
        names = list(self.sums)
        dead = [(idle > self.cfg.dead_feature_threshold).float().mean() for idle in self.tokens_since_fired.values()]
        values = torch.stack([*self.sums.values(), *dead]).tolist()
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
