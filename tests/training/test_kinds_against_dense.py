"""Every kind of coder against a few lines of dense autograd in float64: the loss and each gradient of the first step, and all weights after 20."""

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
from sae_transcoder.training.coder_trainer import CoderTrainer

pytestmark = [pytest.mark.device, pytest.mark.usefixtures("float32_coders")]

POINT, WIDTH, LATENTS, K, STEPS = "layers.0", 32, 128, 4, 20
SEQUENCES, LENGTH, EXCLUDED = 4, 16, 5
LEVELS = [16, 32, 64, LATENTS]
# Wide enough a window, low enough thresholds, that some fall to zero within 20 steps.
JUMPRELU = dict(activation="jumprelu", jumprelu_bandwidth=0.2, jumprelu_init_threshold=0.02)
KINDS = {
    "topk": dict(),
    "topk-matryoshka": dict(matryoshka_widths=LEVELS),
    "batchtopk": dict(activation="batchtopk"),
    "batchtopk-matryoshka": dict(activation="batchtopk", matryoshka_widths=LEVELS),
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
        batch_size=SEQUENCES, max_seq_length=LENGTH, num_latents=LATENTS, k=K, lr=1e-3, lr_schedule="constant", lr_warmup_steps=0,
        auxk_alpha=0.0,
    )  # fmt: skip
    return tiny_config(**usual | settings)


def batches(cfg: Config) -> Iterator[tuple[Tensor, Activations]]:
    """Tokens, and activations that are sums of a few of 64 directions, not centred; the targets of transcoders are a map of them."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(64, WIDTH, generator=generator)
    through, mean = torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5, torch.randn(WIDTH, generator=generator)
    for _ in range(STEPS * cfg.grad_acc_steps):
        tokens = torch.randint(VOCABULARY // 16, (SEQUENCES, LENGTH), generator=generator)
        active = torch.rand(SEQUENCES, LENGTH, 64, generator=generator)
        x = (active * (active > 0.9)) @ directions / 2 + mean
        yield tokens, Activations(x.to(DEVICE), (torch.tanh(x @ through) + mean if cfg.model_type == "transcoder" else x).to(DEVICE))


def kept(cfg: Config, tokens: Tensor, seen: Activations) -> tuple[Tensor, Tensor]:
    """Inputs and targets at the positions that count, float64 [token, d]."""
    positions = ~torch.isin(tokens, torch.tensor(cfg.exclude_tokens))
    positions[:, : cfg.exclude_first_tokens] = False
    y = seen.output.cpu()[positions].double()
    return (seen.input.cpu()[positions].double() if cfg.model_type == "transcoder" else y), y


class Dense:
    """A run of one coder by autograd over dense tensors, from the same weights."""

    def __init__(self, cfg: Config, coder: SparseCoder):
        self.cfg = cfg
        self.weights = {name: p.detach().cpu().double().clone().requires_grad_() for name, p in coder.named_parameters()}
        self.adam = torch.optim.Adam(self.weights.values(), lr=cfg.lr)
        self.constrained = cfg.model_type == "sae" and cfg.normalize_decoder is not False

    @torch.no_grad()
    def begin(self, x: Tensor, y: Tensor) -> None:
        """What the first batch sets."""
        if self.cfg.model_type == "transcoder":
            self.weights["encoder.bias"].copy_(-x.mean(0) @ self.weights["encoder.weight"].T)
        self.weights["b_dec"].copy_(y.mean(0))

    def acts(self, preacts: Tensor) -> tuple[Tensor, Tensor]:
        """Activations and how many count as active, [token, latent] each, with the gradients that thresholds get through the window."""
        if self.cfg.activation != "jumprelu":
            values = preacts.detach().clamp(min=0)
            flat = values.flatten()[None] if self.cfg.activation == "batchtopk" else values
            many = self.cfg.k * (len(values) if self.cfg.activation == "batchtopk" else 1)
            cut = flat.topk(many).values[:, -1:]
            return preacts * ((values >= cut) & (values > 0)), values
        threshold, bandwidth = self.weights["threshold"], self.cfg.jumprelu_bandwidth
        above = (preacts > threshold).double()
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

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Of one batch."""
        w = self.weights
        preacts = (x if self.cfg.model_type == "transcoder" else x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]
        acts, active = self.acts(preacts)
        rest = w["b_dec"] + (x @ w["W_skip"].T if "W_skip" in w else 0)
        levels = [acts[:, :width] @ w["W_dec"][:width] + rest for width in self.cfg.matryoshka_widths or [LATENTS]]
        variance = (y - y.mean(0)).pow(2).sum()
        return sum((y - out).pow(2).sum() / variance for out in levels) / len(levels) + self.sparsity(acts, active)

    def step(self, pairs: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """An optimizer step on the mean loss of some batches; returns its gradients as autograd gives them."""
        w, decoder = self.weights, self.weights["W_dec"]
        if self.constrained:
            decoder.data /= decoder.data.norm(dim=1, keepdim=True)
        self.adam.zero_grad()
        (sum(self.loss(x, y) for x, y in pairs) / len(pairs)).backward()
        gradients = {name: p.grad.clone() for name, p in w.items()}
        if self.constrained:
            decoder.grad -= (decoder.grad * decoder.data).sum(1, keepdim=True) * decoder.data
        self.adam.step()
        if "threshold" in w:
            w["threshold"].data.clamp_(min=0)
        return gradients


def apart(ours: Tensor, dense: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((ours.detach().cpu().double() - dense).abs().max() / dense.abs().max()).item()


def started(cfg: Config) -> CoderTrainer:
    """A run whose decoder is not zero, so that every gradient is there from the first step."""
    run = CoderTrainer(cfg, {POINT: WIDTH}, STEPS * cfg.grad_acc_steps * SEQUENCES, DEVICE)
    coder = run.coders[POINT]
    assert num_latents(cfg, WIDTH) == LATENTS
    decoder = torch.randn(LATENTS, WIDTH, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    coder.W_dec.data = decoder / decoder.norm(dim=1, keepdim=True) if cfg.model_type == "sae" else decoder / 8
    return run


@pytest.mark.parametrize("parts", BATCHES)
@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_and_twenty_steps_are_those_of_dense_autograd(kind: str, coder: str, parts: str) -> None:
    cfg = config(**KINDS[kind], **CODERS[coder], **BATCHES[parts])
    run = started(cfg)
    trained, dense = run.coders[POINT], Dense(cfg, run.coders[POINT])
    seen_gradients: dict[str, Tensor] = {}
    for name, p in trained.named_parameters():
        p.register_post_accumulate_grad_hook(lambda p, name=name: seen_gradients.update({name: p.grad.clone()}))
    pairs: list[tuple[Tensor, Tensor]] = []
    for tokens, seen in batches(cfg):
        pairs.append(kept(cfg, tokens, seen))
        if run.batch == 0:
            dense.begin(*pairs[0])
        if not train_together([run], tokens, {POINT: seen}):
            continue
        gradients = dense.step(pairs)
        pairs.clear()
        if run.step == 1:
            assert seen_gradients.keys() == gradients.keys()
            assert {name for name, g in gradients.items() if not g.any()} == set()
            assert {name: d for name in gradients if (d := apart(seen_gradients[name], gradients[name])) > 1e-5} == {}
    assert run.step == STEPS
    if dense.constrained:
        trained.set_decoder_norm_to_unit_norm()
        dense.weights["W_dec"].data /= dense.weights["W_dec"].data.norm(dim=1, keepdim=True)
    assert {name: d for name, p in trained.named_parameters() if (d := apart(p, dense.weights[name].data)) > 1e-5} == {}
