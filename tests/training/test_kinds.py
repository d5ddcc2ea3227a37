"""batchtopk, jumprelu and Matryoshka coders in training: packs, stops, pieces, published coders, starts from them, the model's own loss."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers.device import DEVICE
from helpers.short_runs import assert_same, short
from helpers.tiny_models import VOCABULARY, tiny_causal_model, tiny_config, tiny_model
from helpers.trainers import train_alone, train_end_to_end
from sae_transcoder.coder.batch_top_k import batch_top_k
from sae_transcoder.coder.trained_coder import load_coder
from sae_transcoder.config import Config, run_dir
from sae_transcoder.language_model.forward import Activations, capture
from sae_transcoder.training import end_to_end, engine
from sae_transcoder.training.coder_copies import copy_coders
from sae_transcoder.training.coder_trainer import CoderTrainer
from sae_transcoder.training.trainer_state import restore, training_state

WIDTHS = [16, 32, 128]
KINDS: dict[str, dict] = {
    "batchtopk": dict(activation="batchtopk"),
    "jumprelu": dict(activation="jumprelu", normalize_activations="mean_norm", jumprelu_bandwidth=1.0, l0_coefficient=0.01),
    "matryoshka": dict(activation="batchtopk", matryoshka_widths=WIDTHS, auxk_per_level=True, normalize_activations="mean_norm"),
    "matryoshka_topk": dict(activation="topk", matryoshka_widths=WIDTHS),
}
POINT = {"sae": "layers.1", "transcoder": "layers.1.mlp"}


def config(kind: str, model_type: str = "sae", **settings: object) -> Config:
    """A short run on a tiny model's activations, in which latents die and tokens are excluded."""
    usual = dict(
        lr=0.01, auxk_alpha=0.1, dead_feature_threshold=40, exclude_first_tokens=1, exclude_tokens=[5], skip_connection=True
    )
    return tiny_config(model_type, **usual | KINDS[kind] | settings)


def batches(cfg: Config, samples: int = 16) -> list[tuple[Tensor, dict[str, Activations]]]:
    tokens = torch.randint(0, VOCABULARY, (samples, 16), generator=torch.Generator().manual_seed(1))
    model = tiny_model("llama")
    return [(batch, capture(model, [POINT[cfg.model_type]], batch.to(DEVICE))) for batch in tokens.split(cfg.batch_size)]


def new_run(cfg: Config, samples: int = 16, start_from: dict[str, Path] | None = None) -> CoderTrainer:
    return CoderTrainer(cfg, {POINT[cfg.model_type]: 32}, samples, DEVICE, start_from or {})


def trained(cfg: Config) -> CoderTrainer:
    run = new_run(cfg)
    for tokens, activations in batches(cfg):
        train_alone(run, tokens, activations)
    return run


def tensors(run: CoderTrainer) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for name, coder in run.coders.items() for key, value in coder.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", ["sae", "transcoder"])
def test_a_run_restored_between_any_two_batches_ends_in_the_same_bits(kind: str, model_type: str) -> None:
    cfg = config(kind, model_type, grad_acc_steps=3, init_seeds=[0, 1])
    undisturbed = trained(cfg)
    run = new_run(cfg)
    for tokens, activations in batches(cfg):
        train_alone(run, tokens, activations)
        file = io.BytesIO()
        torch.save(training_state(run), file)
        file.seek(0)
        run = new_run(cfg)
        restore(run, torch.load(file, weights_only=True))
    assert run.scales == undisturbed.scales
    expected = tensors(undisturbed)
    assert all(torch.equal(value, expected[name]) for name, value in tensors(run).items())


@pytest.mark.usefixtures("float32_coders")
@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_change_no_gradient(kind: str) -> None:
    whole, pieces = (trained(config(kind, micro_acc_steps=count)) for count in (1, 4))
    expected = tensors(whole)
    for name, value in tensors(pieces).items():
        torch.testing.assert_close(value, expected[name], atol=1e-4, rtol=1e-3)


def test_every_batch_has_exactly_k_latents_per_token_in_all_and_each_token_its_own_number() -> None:
    cfg = config("batchtopk", log_every=1)
    run = new_run(cfg)
    for tokens, activations in batches(cfg):
        train_alone(run, tokens, activations)
        assert run.metrics()["l0/layers.1"] == pytest.approx(cfg.k)
    coder = run.coders["layers.1"]
    x = batches(cfg)[0][1]["layers.1"].output.flatten(0, 1)
    numbers = (coder(x).latent_indices.shape[0], len(x) * cfg.k)
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("last_cut", [None, 0.0, 0.5, 3.0, 1e6])
@pytest.mark.parametrize("rounded", [False, True])
def test_the_selection_is_exact_for_any_bound_ties_and_few_positive_values(
    last_cut: float | None, rounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_transcoder.coder import chunk_sizes

    monkeypatch.setitem(chunk_sizes.CHUNK_SIZE, DEVICE.type, 2000)
    torch.manual_seed(0)
    for num_tokens, k, shift in [(300, 3, 0.0), (300, 3, -9.0), (1, 5, 0.0), (600, 1, 0.0), (40, 20, 2.0), (30, 2, -1e3)]:
        x, weight = torch.randn(num_tokens, 8, device=DEVICE), torch.randn(50, 8, device=DEVICE)
        bias = torch.full((50,), shift, device=DEVICE)
        if rounded:  # many equal values
            x, weight = x.round(), weight.round()
        entries, cut = batch_top_k(
            x, weight, bias, k * num_tokens, None if last_cut is None else torch.tensor(last_cut, device=DEVICE)
        )
        positive = torch.nn.functional.linear(x, weight, bias).relu().flatten()
        values, order = positive.sort(descending=True, stable=True)
        count = min(k * num_tokens, int((positive > 0).sum()))
        assert torch.equal(entries.tokens * 50 + entries.latents, order[:count].sort().values)
        assert cut is None if count == 0 else cut == values[count - 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", ["sae", "transcoder"])
def test_a_published_coder_takes_activations_as_they_are_and_fires_above_its_threshold(
    kind: str, model_type: str, tmp_path: Path
) -> None:
    cfg = config(kind, model_type)
    run = trained(cfg)
    (name,) = run.coders
    coder, published = run.coders[name], copy_coders(run)[name]
    published.save_to_disk(tmp_path)
    at_hookpoint = batches(cfg)[0][1][POINT[model_type]]
    y = at_hookpoint.output.flatten(0, 1).float()
    x = at_hookpoint.input.flatten(0, 1).float() if model_type == "transcoder" else y
    scales = run.scales.get(POINT[model_type])
    scaled_x = scales.scaled(x, y)[0] if scales else x
    preacts = torch.nn.functional.linear(
        scaled_x if coder.cfg.transcode else scaled_x - coder.b_dec, coder.encoder.weight, coder.encoder.bias
    )
    if kind == "matryoshka_topk":
        acts = torch.zeros_like(preacts).scatter(1, preacts.topk(cfg.k).indices, 1) * preacts.relu()
    else:
        acts = preacts.relu() * (preacts > coder.threshold)
    decoder = torch.nn.functional.normalize(coder.W_dec, dim=1) if model_type == "sae" else coder.W_dec
    expected = acts @ decoder + coder.b_dec + scaled_x @ coder.W_skip.mT
    expected = expected / scales.targets if scales else expected
    for stored in (published, load_coder(tmp_path, DEVICE)):
        assert stored.matryoshka_widths == cfg.matryoshka_widths
        torch.testing.assert_close(stored(x).sae_out, expected, atol=1e-4, rtol=1e-4)
        assert ((stored(x).latent_acts > 0).sum(1) == (acts > 0).sum(1)).float().mean() > 0.99


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", ["sae", "transcoder"])
def test_a_run_that_starts_from_a_published_coder_computes_the_same(kind: str, model_type: str, tmp_path: Path) -> None:
    cfg = config(kind, model_type)
    name = POINT[model_type]
    published = copy_coders(trained(cfg))[name]
    published.save_to_disk(tmp_path)
    run = new_run(cfg, start_from={name: tmp_path})
    (tokens, activations), *_ = batches(cfg)
    run.tasks(tokens, activations)  # the scales are found
    again = copy_coders(run)[name]
    for key, value in published.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value)
    if kind == "jumprelu":
        torch.testing.assert_close(again.threshold, published.threshold)


@pytest.mark.parametrize("optimizer", ["adam", "muon", "signum"])
def test_thresholds_that_training_lowers_to_zero_are_published_as_zero(optimizer: str) -> None:
    cfg = config("jumprelu", optimizer=optimizer, lr=0.05, k=128, jumprelu_bandwidth=4.0, l0_coefficient=10.0)
    (coder,) = copy_coders(trained(cfg)).values()
    assert coder.threshold.median() == 0  # with signum of the average


def test_thresholds_begin_as_they_are_set_where_the_coder_that_training_starts_from_has_none(tmp_path: Path) -> None:
    name, (tokens, activations) = POINT["sae"], batches(config("matryoshka_topk"))[0]
    copy_coders(trained(config("matryoshka_topk")))[name].save_to_disk(tmp_path)
    run = new_run(config("jumprelu", jumprelu_init_threshold=1.0), start_from={name: tmp_path})
    run.tasks(tokens, activations)  # the scales are found
    assert run.scales[name].inputs != 1
    assert (run.coders[name].threshold == 1).all()  # in units of scaled activations


@pytest.mark.parametrize("kind", KINDS)
def test_a_coder_trains_by_the_language_models_own_loss(kind: str) -> None:
    cfg = config(kind, loss_fn="ce", lr=0.003, exclude_tokens=[])
    model, run = tiny_causal_model("llama"), new_run(cfg, 64)
    before = {name: value.clone() for name, value in tensors(run).items()}
    tokens = torch.randint(0, VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(2))
    losses = []
    for _ in range(20):
        train_end_to_end(run, model, tokens, tokens.to(DEVICE))
        losses.append(run.metrics()["ce"])
    changed = {name for name, value in tensors(run).items() if not torch.equal(value, before[name])}
    assert changed == before.keys()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", ["matryoshka", "matryoshka_topk", "jumprelu"])
def test_beside_the_models_loss_a_coders_own_losses_train_it_and_no_earlier_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_to_end, "end_to_end_loss", without_the_models(end_to_end.end_to_end_loss))
    settings = dict(jumprelu_loss="tanh") if kind == "jumprelu" else {}
    cfg = config(kind, loss_fn="ce", exclude_tokens=[], auxk_alpha=0.0, skip_connection=False, **settings)
    run = CoderTrainer(cfg, {"layers.0": 32, "layers.2": 32}, 64, DEVICE)
    tokens = torch.randint(0, VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(2))
    gradients = {}
    monkeypatch.setattr(end_to_end, "optimizer_step", lambda _: gradients.update(gradients_of(run)))
    train_end_to_end(run, tiny_causal_model("llama"), tokens, tokens.to(DEVICE))
    both = gradients.copy()
    alone = CoderTrainer(cfg, {"layers.0": 32}, 64, DEVICE)
    monkeypatch.setattr(end_to_end, "optimizer_step", lambda _: gradients.update(gradients_of(alone)))
    train_end_to_end(alone, tiny_causal_model("llama"), tokens, tokens.to(DEVICE))
    for name, gradient in gradients.items():
        if name.startswith("layers.0"):
            assert torch.equal(gradient, both[name]), "the later coder's losses add nothing to the earlier one's gradient"
    assert all(both[f"{point}.encoder.weight"].abs().max() > 0 for point in ("layers.0", "layers.2"))


def without_the_models(loss: Callable) -> Callable:
    """An end-to-end loss that trains nothing by itself."""
    return lambda *args, **kwargs: 0 * loss(*args, **kwargs)


def gradients_of(run: CoderTrainer) -> dict[str, Tensor]:
    return {
        f"{n}.{k}": p.grad.clone() for n, coder in run.coders.items() for k, p in coder.named_parameters() if p.grad is not None
    }


def test_auxk_of_each_dictionary_trains_its_own_dead_latents_alone() -> None:
    run = new_run(config("matryoshka"))
    coder = run.coders["layers.1"]
    ((_, activations), *_) = batches(config("matryoshka"))
    x = activations["layers.1"].output.flatten(0, 1)
    dead = [
        torch.tensor([3, 9], device=DEVICE),
        torch.tensor([], dtype=torch.long, device=DEVICE),
        torch.tensor([100], device=DEVICE),
    ]
    out = coder(x, dead=dead)
    preacts = torch.nn.functional.linear(x - coder.b_dec, coder.encoder.weight, coder.encoder.bias).relu()
    acts = preacts * (preacts >= out.latent_acts.min())
    expected = torch.zeros((), device=DEVICE)
    for rows, width in zip(dead, WIDTHS, strict=True):
        error = x - (acts[:, :width] @ coder.W_dec[:width] + coder.b_dec + x @ coder.W_skip.mT)
        expected = expected + len(rows) / 16 * (preacts[:, rows] @ coder.W_dec[rows] - error).pow(2).sum() * (len(rows) > 0)
    torch.testing.assert_close(out.auxk_loss, expected / (x - x.mean(0)).pow(2).sum(), rtol=1e-4, atol=1e-6)


def test_runs_of_all_kinds_in_a_pack_are_each_identical_to_themselves_alone(cache: Path, tmp_path: Path) -> None:
    widths = "matryoshka_widths=[64,256,512]"
    kinds = {
        "topk": [],
        "batchtopk": ["activation=batchtopk"],
        "jumprelu": ["activation=jumprelu", "normalize_activations=mean_norm", "jumprelu_init_threshold=1"],
        "matryoshka": ["activation=batchtopk", widths, "normalize_activations=mean_norm"],
        "matryoshka_topk": [widths, "micro_acc_steps=2"],
    }
    packed = [short(cache, tmp_path / "pack", "eval_end_to_end=false", *settings) for settings in kinds.values()]
    engine.train(packed)
    for cfg, settings in zip(packed, kinds.values(), strict=True):
        alone = short(cache, tmp_path / "alone", "eval_end_to_end=false", *settings)
        engine.train([alone])
        assert_same(run_dir(alone), run_dir(cfg))
