"""Learning rates step by step, Adam's betas and clipped gradients, by the settings that choose them."""

import math

import pytest
import torch
from torch import Tensor

from helpers.device import DEVICE
from helpers.tiny_models import tiny_config
from helpers.trainers import train_alone, train_together
from sae_transcoder.language_model.forward import Activations
from sae_transcoder.training.coder_trainer import CoderTrainer
from sae_transcoder.training.trainer_state import restore, training_state

pytestmark = pytest.mark.device

POINTS = {"layers.1": 32, "layers.2": 32}
STEPS, WARMUP, DECAY = 20, 4, 5


def new_run(**settings: object) -> CoderTrainer:
    """A run of 20 steps of one batch."""
    return CoderTrainer(tiny_config("sae", batch_size=1, lr=0.01, **settings), POINTS, STEPS, DEVICE)


def batch(number: int) -> tuple[Tensor, dict[str, Activations]]:
    """Tokens [1, 16] and activations [1, 16, 32] of each hookpoint, the same at each call."""
    generator = torch.Generator().manual_seed(number)
    outputs = {point: torch.randn(1, 16, 32, generator=generator).to(DEVICE) for point in POINTS}
    return torch.zeros(1, 16, dtype=torch.long), {point: Activations(output, output) for point, output in outputs.items()}


def trained(run: CoderTrainer, numbers: range) -> list[float]:
    """Trains on these batches; returns the learning rate of each step, of full size 1."""
    rates = []
    for number in numbers:
        train_alone(run, *batch(number))
        rates.append(run.lr_used / 0.01)
    return rates


def half_cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


RISE = [step / WARMUP for step in range(WARMUP)]
SCHEDULES = {
    "linear": ({}, [(STEPS - step) / (STEPS - WARMUP) for step in range(WARMUP, STEPS)]),
    "cosine": ({"lr_schedule": "cosine"}, [half_cosine((step - WARMUP) / (STEPS - WARMUP)) for step in range(WARMUP, STEPS)]),
    "constant": ({"lr_schedule": "constant"}, [1.0] * 16),
    # SAELens's LinearLR over 5 steps after a constant rate, and dictionary_learning's (steps - step) / (steps - decay_start)
    "linear at the end": ({"lr_decay_steps": DECAY}, [1.0] * 11 + [1.0, 0.8, 0.6, 0.4, 0.2]),
    "cosine at the end": (
        {"lr_schedule": "cosine", "lr_decay_steps": DECAY},
        [1.0] * 11 + [half_cosine(step / DECAY) for step in range(DECAY)],
    ),
}


@pytest.mark.parametrize(("settings", "fall"), SCHEDULES.values(), ids=SCHEDULES)
def test_the_rate_of_each_step_is_the_schedules(settings: dict, fall: list[float]) -> None:
    assert trained(new_run(lr_warmup_steps=WARMUP, **settings), range(STEPS)) == pytest.approx(RISE + fall)


def test_muons_matrices_fall_without_a_warmup_and_its_biases_with_one() -> None:
    run = new_run(optimizer="muon", lr_warmup_steps=WARMUP, lr_decay_steps=DECAY)
    biases = []
    for number in range(STEPS):
        biases.append(run.optimizers[1].param_groups[0]["lr"] / 0.01)
        train_alone(run, *batch(number))
        assert run.lr_used / 0.01 == pytest.approx(1.0 if number < 15 else (STEPS - number) / DECAY)
    assert biases == pytest.approx(RISE + SCHEDULES["linear at the end"][1])


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize("name", ["cosine", "constant", "linear at the end", "cosine at the end"])
def test_a_resumed_run_ends_bit_for_bit_as_one_never_stopped(name: str, optimizer: str) -> None:
    settings = SCHEDULES[name][0] | {"optimizer": optimizer, "grad_clip_norm": 0.01, "lr_warmup_steps": WARMUP}
    settings |= {"adam_betas": [0.5, 0.9]} if optimizer == "adam" else {}
    undisturbed, stopped, resumed = new_run(**settings), new_run(**settings), new_run(**settings)
    rates = trained(undisturbed, range(STEPS))
    first = trained(stopped, range(17))
    restore(resumed, training_state(stopped))
    assert first + trained(resumed, range(17, STEPS)) == rates
    assert_same(undisturbed, resumed)


def assert_same(one: CoderTrainer, other: CoderTrainer) -> None:
    for name, coder in one.coders.items():
        for key, value in coder.state_dict().items():
            assert torch.equal(value, other.coders[name].state_dict()[key]), f"{name}.{key}"


def test_adam_averages_by_its_betas() -> None:
    run = new_run(adam_betas=[0.5, 0.75])
    train_alone(run, *batch(0))
    assert all(group["betas"] == (0.5, 0.75) for group in run.optimizers[0].param_groups)
    assert all(group["betas"] == (0.9, 0.999) for group in new_run().optimizers[0].param_groups)
    coder = next(iter(run.coders.values()))
    average = run.optimizers[0].state[coder.b_dec]["exp_avg"].clone()
    seen: list[Tensor] = []
    run.optimizers[0].register_step_pre_hook(lambda *_: seen.append(coder.b_dec.grad.clone()))
    train_alone(run, *batch(1))
    torch.testing.assert_close(run.optimizers[0].state[coder.b_dec]["exp_avg"], 0.5 * average + 0.5 * seen[0])


def gradients(run: CoderTrainer, number: int) -> dict[str, Tensor]:
    """{coder: its whole gradient} as the optimizers take it in the step on a batch."""
    seen: dict[str, Tensor] = {}

    def note(*_: object) -> None:
        seen.update({n: torch.cat([p.grad.flatten() for p in c.parameters()]) for n, c in run.coders.items()})

    hook = run.optimizers[0].register_step_pre_hook(note)
    train_alone(run, *batch(number))
    hook.remove()
    return seen


def test_each_coders_gradient_is_scaled_down_to_the_norm_by_itself() -> None:
    whole = gradients(new_run(), 0)
    norms = {name: float(gradient.norm()) for name, gradient in whole.items()}
    low, high = sorted(norms.values())
    limit = (low + high) / 2
    clipped = gradients(new_run(grad_clip_norm=limit), 0)
    for name, gradient in whole.items():
        torch.testing.assert_close(clipped[name], gradient * min(1.0, limit / norms[name]), rtol=1e-4, atol=1e-9)
    assert low < limit < high
    assert torch.equal(clipped[min(norms, key=norms.__getitem__)], whole[min(norms, key=norms.__getitem__)])


def test_what_is_clipped_is_orthogonal_to_the_decoders_rows() -> None:
    run = new_run(grad_clip_norm=1e-3)
    decoders: dict[str, Tensor] = {}
    run.optimizers[0].register_step_pre_hook(
        lambda *_: decoders.update({n: (c.W_dec.grad * c.W_dec).sum(1) for n, c in run.coders.items()})
    )
    seen = gradients(run, 0)
    assert all(float(gradient.norm()) == pytest.approx(1e-3, rel=1e-4) for gradient in seen.values())
    assert all(float(parallel.detach().abs().max()) < 1e-8 for parallel in decoders.values())


@pytest.mark.usefixtures("one_by_one")
def test_runs_of_a_pack_with_settings_of_their_own_end_as_alone() -> None:
    settings: list[dict] = [
        {},
        {"grad_clip_norm": 1e-3},
        {"adam_betas": [0.5, 0.9]},
        {"lr_schedule": "cosine"},
        {"lr_decay_steps": 3},
    ]
    together, alone = ([new_run(**each) for each in settings] for _ in range(2))
    for number in range(6):
        train_together(together, *batch(number))
        for run in alone:
            train_alone(run, *batch(number))
    for one, other in zip(together, alone, strict=True):
        assert_same(one, other)
    ends = [run.coders["layers.1"].encoder.weight for run in alone]
    assert not any(torch.equal(ends[0], end) for end in ends[1:3])


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_adam_without_corrections_is_torchs_own_choice_of_loops_as_sparsifys_is(optimizer: str) -> None:
    """fused=False would rule out the loops over lists that torch takes on a GPU, which round otherwise."""
    plain, corrected = (new_run(corrections=on, optimizer=optimizer).optimizers[-1].defaults["fused"] for on in (False, True))
    assert (plain, corrected) == (None, True)


@pytest.mark.parametrize("norm", [1e-2, 1e-4])
def test_gradients_clipped_to_a_small_norm_train_as_if_their_loss_and_its_norm_were_larger(norm: float) -> None:
    """Adam does not depend on the size of gradients, but for its eps, which is scaled as they are."""
    small, usual = new_run(grad_clip_norm=norm), new_run(grad_clip_norm=1.0)
    for parameter in usual.coders["layers.1"].parameters():
        parameter.register_hook(lambda gradient: gradient / norm)
    for number in range(6):
        for run in (small, usual):
            train_alone(run, *batch(number))
    for one, other in zip(small.coders["layers.1"].parameters(), usual.coders["layers.1"].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert small.optimizers[0].defaults["eps"] == pytest.approx(1e-8 * norm)
