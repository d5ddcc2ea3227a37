"""Every kind of coder against a few lines of dense autograd in float64: the gradients of the first step, the losses and what fires at each, the
weights after 20, and the threshold of batches."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from helpers.device import DEVICE
from helpers.tiny_models import VOCABULARY, tiny_config
from helpers.trainers import train_together
from sae_transcoder.coder.sparsify_parts import SparseCoder
from sae_transcoder.config import Config, num_latents
from sae_transcoder.language_model.forward import Activations
from sae_transcoder.training.coder_copies import copy_coders
from sae_transcoder.training.coder_trainer import CoderTrainer

pytestmark = [pytest.mark.device, pytest.mark.usefixtures("float32_coders")]

POINT, WIDTH, LATENTS, K, STEPS = "layers.0", 32, 128, 4, 20
SEQUENCES, LENGTH, EXCLUDED = 4, 16, 5
MARGIN = 5e-6  # in pre-activations, beyond what float32 adds up to in 20 steps
LEVELS = [16, 32, 64, LATENTS]
JUMPRELU = dict(activation="jumprelu", jumprelu_bandwidth=0.2, jumprelu_init_threshold=0.02)
KINDS = {
    "topk": dict(),
    "topk-matryoshka": dict(matryoshka_widths=LEVELS),
    "batchtopk": dict(activation="batchtopk", threshold_beta=0.8),
    "batchtopk-matryoshka": dict(activation="batchtopk", threshold_beta=0.8, matryoshka_widths=LEVELS),
    "jumprelu-quadratic": dict(**JUMPRELU, jumprelu_loss="quadratic", l0_coefficient=0.05),
    "jumprelu-step": dict(**JUMPRELU, jumprelu_loss="step", l0_coefficient=0.01),
    "jumprelu-tanh": dict(**JUMPRELU, jumprelu_loss="tanh", l0_coefficient=0.01),
}
CODERS = {
    "sae": dict(model_type="sae"),
    "free-decoder": dict(model_type="sae", normalize_decoder=False),
    "transcoder": dict(model_type="transcoder"),
    "skip": dict(model_type="transcoder", skip_connection=True),
}
BATCHES = {
    "whole": dict(),
    "in-four-parts": dict(micro_acc_steps=4),
    "two-a-step-tokens-left-out": dict(grad_acc_steps=2, exclude_tokens=[EXCLUDED], exclude_first_tokens=1, micro_acc_steps=3),
}


def config(**settings: object) -> Config:
    usual = dict(
        batch_size=SEQUENCES, max_seq_length=LENGTH, num_latents=LATENTS, k=K, lr=1e-3, lr_warmup_steps=0, auxk_alpha=0.0,
    )  # fmt: skip
    return tiny_config(**usual | settings)


def batches(cfg: Config) -> Iterator[tuple[Tensor, Activations]]:
    """Tokens, and activations that are sums of a few of 64 directions, not centred; the targets of transcoders are a map of them. No end of them."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(64, WIDTH, generator=generator)
    through, mean = torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5, torch.randn(WIDTH, generator=generator)
    while True:
        tokens = torch.randint(VOCABULARY // 16, (SEQUENCES, LENGTH), generator=generator)
        active = torch.rand(SEQUENCES, LENGTH, 64, generator=generator)
        x = (active * (active > 0.9)) @ directions / 2 + mean
        yield (
            tokens,
            Activations(x.to(DEVICE), (torch.tanh(x @ through) + mean if cfg.model_type == "transcoder" else x).to(DEVICE)),
        )


def kept(cfg: Config, tokens: Tensor, seen: Activations) -> tuple[Tensor, Tensor]:
    """Inputs and targets at the positions that count, float64 [token, d]."""
    positions = ~torch.isin(tokens, torch.tensor(cfg.exclude_tokens))
    positions[:, : cfg.exclude_first_tokens] = False
    y = seen.output.cpu()[positions].double()
    return (seen.input.cpu()[positions].double() if cfg.model_type == "transcoder" else y), y


class Dense:
    """A run of one coder by autograd over dense tensors, from the same weights."""

    def __init__(self, cfg: Config, coder: SparseCoder, steps: int):
        self.cfg = cfg
        self.weights = {name: p.detach().cpu().double().clone().requires_grad_() for name, p in coder.named_parameters()}
        self.adam = torch.optim.Adam(self.weights.values(), lr=cfg.lr)
        self.falls = torch.optim.lr_scheduler.LambdaLR(self.adam, lambda step: 1 - step / steps)
        self.idle, self.fired = torch.zeros(LATENTS), torch.zeros(LATENTS, dtype=torch.bool)
        self.margin, self.cuts = torch.inf, []
        self.constrained = cfg.model_type == "sae" and cfg.normalize_decoder is not False

    @torch.no_grad()
    def begin(self, x: Tensor, y: Tensor) -> None:
        """What the first batch sets."""
        if self.cfg.model_type == "transcoder":
            self.weights["encoder.bias"].copy_(-x.mean(0) @ self.weights["encoder.weight"].T)
        self.weights["b_dec"].copy_(y.mean(0))

    @torch.no_grad()
    def is_decided(self, x: Tensor, y: Tensor) -> bool:
        """Whether no pre-activation of a batch lies so near to where it begins to count that rounding would decide."""
        self.margin, fired, cuts = torch.inf, self.fired.clone(), [*self.cuts]
        self.loss(x, y)
        self.fired, self.cuts = fired, cuts
        return self.margin > MARGIN

    def largest(self, values: Tensor, many: int) -> tuple[Tensor, Tensor]:
        """The `many` largest of each row and their places."""
        kept = values.topk(min(many + 1, values.shape[1]))
        if kept.values.shape[1] > many:
            self.margin = min(self.margin, (kept.values[:, many - 1] - kept.values[:, many]).min().item())
        return kept.values[:, :many], kept.indices[:, :many]

    def acts(self, preacts: Tensor) -> tuple[Tensor, Tensor]:
        """Activations and how many count as active, [token, latent] each, with the gradients that thresholds get through the window."""
        if self.cfg.activation != "jumprelu":
            whole = self.cfg.activation == "batchtopk"
            rows = preacts.detach().flatten()[None] if whole else preacts.detach()
            values, _ = self.largest(rows, self.cfg.k * (len(preacts) if whole else 1))
            self.cuts.append(values[0, -1].item())
            return preacts * ((preacts >= values[:, -1:]) & (preacts > 0)), preacts
        threshold, bandwidth = self.weights["threshold"], self.cfg.jumprelu_bandwidth
        above = (preacts > threshold).double()
        distances = torch.stack([preacts - threshold, (preacts - threshold).abs() - bandwidth / 2]).abs()
        self.margin = min(self.margin, distances.min().item())
        moved = ((preacts - threshold).abs() < bandwidth / 2).detach() * (threshold - threshold.detach()) / bandwidth
        return preacts * above - threshold.detach() * moved, above - moved

    def sparsity(self, acts: Tensor, active: Tensor) -> Tensor:
        """The loss beside the FVU."""
        if self.cfg.activation != "jumprelu":
            return torch.zeros(())
        l0 = active.sum(1)
        per_token = {
            "quadratic": 2 * (l0 - self.cfg.k) ** 2 / self.cfg.k,
            "step": l0,
            "tanh": torch.tanh(4 * acts * self.weights["W_dec"].norm(dim=1)).sum(1),
        }
        return self.cfg.l0_coefficient * per_token[self.cfg.jumprelu_loss].mean()

    def auxk(self, preacts: Tensor, errors: list[Tensor]) -> Tensor:
        """The loss by which dead latents predict errors [token, d]: those new in each dictionary its error, or all of them the last."""
        loss, most, ends = torch.zeros(()), WIDTH // 2, [0, *(self.cfg.matryoshka_widths or [LATENTS])]
        if not self.cfg.auxk_per_level:
            ends, errors = [0, LATENTS], errors[-1:]
        for start, end, error in zip(ends, ends[1:], errors, strict=False):
            dead = (self.idle[start:end] > self.cfg.dead_feature_threshold).nonzero()[:, 0] + start
            if len(dead):
                values, places = self.largest(preacts[:, dead], most)
                acts = torch.zeros(len(preacts), len(dead), dtype=torch.double).scatter(1, places, values.relu())
                loss = loss + min(len(dead) / most, 1) * (error.detach() - acts @ self.weights["W_dec"][dead]).pow(2).sum()
        return loss

    def loss(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Of one batch: its parts, as they add up."""
        w = self.weights
        preacts = (x if self.cfg.model_type == "transcoder" else x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]
        acts, active = self.acts(preacts)
        self.fired |= (acts > 0).any(0)
        rest = w["b_dec"] + (x @ w["W_skip"].T if "W_skip" in w else 0)
        errors = [y - acts[:, :width] @ w["W_dec"][:width] - rest for width in self.cfg.matryoshka_widths or [LATENTS]]
        variance = (y - y.mean(0)).pow(2).sum()
        fvu = sum(error.pow(2).sum() for error in errors) / len(errors) / variance
        auxk = self.cfg.auxk_alpha * self.auxk(preacts, errors) / variance
        return {"fvu": fvu, "auxk": auxk, "sparsity": self.sparsity(acts, active)}

    def step(self, pairs: list[tuple[Tensor, Tensor]]) -> tuple[dict[str, float], dict[str, Tensor]]:
        """An optimizer step on the mean loss of some batches; returns the parts of the loss, and its gradients as autograd gives them."""
        w, decoder = self.weights, self.weights["W_dec"]
        self.adam.zero_grad()
        losses = [self.loss(x, y) for x, y in pairs]
        mean = {name: sum(loss[name] for loss in losses) / len(pairs) for name in losses[0]}
        sum(mean.values()).backward()
        gradients = {name: p.grad.clone() for name, p in w.items()}
        if self.constrained:
            decoder.grad -= (decoder.grad * decoder.data).sum(1, keepdim=True) * decoder.data
        self.adam.step()
        self.falls.step()
        if self.constrained:
            decoder.data /= decoder.data.norm(dim=1, keepdim=True)
        if "threshold" in w:
            w["threshold"].data.clamp_(min=0)
        self.idle += sum(len(x) for x, _ in pairs)
        self.idle[self.fired] = 0
        self.fired.zero_()
        return {name: loss.item() for name, loss in mean.items()}, gradients


def apart(ours: Tensor, dense: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((ours.detach().cpu().double() - dense).abs().max() / dense.abs().max()).item()


def started(cfg: Config, steps: int) -> CoderTrainer:
    """A run of so many steps whose decoder is not zero, so that every gradient is there from the first step."""
    run = CoderTrainer(cfg, {POINT: WIDTH}, steps * cfg.grad_acc_steps * SEQUENCES, DEVICE)
    coder = run.coders[POINT]
    assert num_latents(cfg, WIDTH) == LATENTS
    decoder = torch.randn(LATENTS, WIDTH, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    coder.W_dec.data = decoder / decoder.norm(dim=1, keepdim=True) if cfg.model_type == "sae" else decoder / 8
    if cfg.activation == "jumprelu" and cfg.auxk_alpha:
        coder.threshold.data[::4] = 9.0  # latents that never fire
    return run


def said(run: CoderTrainer) -> dict[str, float]:
    """The parts of the loss that a run has logged since the last call."""
    values = {name.removesuffix(f"/{POINT}"): value for name, value in run.metrics().items()}
    fvus = [value for name, value in values.items() if name.startswith("fvu")]
    weight = run.cfg.l0_coefficient or 0
    return {
        "fvu": sum(fvus) / len(fvus),
        "auxk": run.cfg.auxk_alpha * values.get("auxk", 0),
        "sparsity": weight * values.get("sparsity", 0),
    }


def compare(cfg: Config, steps: int = STEPS) -> tuple[CoderTrainer, list[dict[str, float]]]:
    """Trains a run and its dense twin and compares them; returns the run, and the parts of the dense loss at each step."""
    run = started(cfg, steps)
    trained, dense = run.coders[POINT], Dense(cfg, run.coders[POINT], steps)
    seen_gradients: dict[str, Tensor] = {}
    for name, p in trained.named_parameters():
        p.register_post_accumulate_grad_hook(lambda p, name=name: seen_gradients.update({name: p.grad.clone()}))
    pairs: list[tuple[Tensor, Tensor]] = []
    losses = []
    for tokens, seen in batches(cfg):
        pair = kept(cfg, tokens, seen)
        if run.done:
            break
        if run.batch == 0:
            dense.begin(*pair)
        if not dense.is_decided(*pair):
            continue
        pairs.append(pair)
        if not train_together([run], tokens, {POINT: seen}):
            continue
        loss, gradients = dense.step(pairs)
        pairs.clear()
        losses.append(loss)
        assert said(run) == pytest.approx(loss, rel=1e-5, abs=1e-7), f"step {run.step}"
        if run.step == 1:
            assert seen_gradients.keys() == gradients.keys()
            assert {name for name, g in gradients.items() if not g.any()} == set()
            assert {name: d for name in gradients if (d := apart(seen_gradients[name], gradients[name])) > 1e-5} == {}
    assert run.step == steps
    assert torch.equal(run.tokens_since_fired[POINT].cpu(), dense.idle.long())
    if dense.constrained:
        trained.set_decoder_norm_to_unit_norm()
    # By their norm: Adam divides by gradients, and where one happens to cancel, float32 alone moves that weight by more.
    off = {name: p.detach().cpu().double() - dense.weights[name].data for name, p in trained.named_parameters()}
    assert {name: d for name in off if (d := (off[name].norm() / dense.weights[name].norm()).item()) > 1e-5} == {}
    if cfg.activation == "batchtopk":
        weights = [cfg.threshold_beta ** (len(dense.cuts) - 1 - i) for i in range(len(dense.cuts))]
        average = sum(weight * cut for weight, cut in zip(weights, dense.cuts, strict=True)) / sum(weights)
        assert copy_coders(run)[POINT].threshold.item() == pytest.approx(average, rel=1e-5)
    return run, losses


CASES = [*((coder, "whole") for coder in CODERS), ("sae", "in-four-parts"), ("skip", "two-a-step-tokens-left-out")]


@pytest.mark.parametrize(("coder", "parts"), CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_and_twenty_steps_are_those_of_dense_autograd(kind: str, coder: str, parts: str) -> None:
    compare(config(**KINDS[kind], **CODERS[coder], **BATCHES[parts]))


def test_thresholds_stop_at_zero() -> None:
    run, _ = compare(config(**CODERS["sae"], **JUMPRELU | dict(jumprelu_init_threshold=5e-4, l0_coefficient=0.0)), steps=1)
    thresholds = run.coders[POINT].threshold
    assert thresholds.min() == 0
    assert thresholds.max() > 5e-4


@pytest.mark.parametrize("coder", ["sae", "skip"])
@pytest.mark.parametrize(
    ("kind", "per_level"), [*((kind, False) for kind in KINDS), ("topk-matryoshka", True), ("batchtopk-matryoshka", True)]
)
def test_so_are_those_by_which_dead_latents_learn(kind: str, coder: str, per_level: bool) -> None:
    cfg = config(
        **KINDS[kind], **CODERS[coder], auxk_alpha=0.5, auxk_per_level=per_level, dead_feature_threshold=SEQUENCES * LENGTH,
        micro_acc_steps=2,
    )  # fmt: skip
    _, losses = compare(cfg)
    assert max(loss["auxk"] for loss in losses) > 0.01
