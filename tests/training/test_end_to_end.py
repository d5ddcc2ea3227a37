"""Runs whose loss is the language model's own, with the coders' outputs in place of the modules'."""

import copy

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from sparsify import Trainer
from torch import Tensor, nn

from helpers.device import DEVICE, by_device
from helpers.oracle import POINTS, assert_equal
from helpers.oracle import tokens as tokens_on_the_host
from helpers.short_runs import lines, short, weights
from helpers.tiny_models import tiny_causal_model, tiny_config
from helpers.trainers import train_end_to_end
from sae_transcoder.coder.positions import PositionFilter
from sae_transcoder.coder.sparsify_config import sparsify_configs
from sae_transcoder.config import Config, ConfigError, run_dir
from sae_transcoder.config.run_length import run_length
from sae_transcoder.language_model.forward import end_to_end_loss
from sae_transcoder.training import engine
from sae_transcoder.training.coder_trainer import CoderTrainer

pytestmark = [pytest.mark.device, pytest.mark.usefixtures("torchs_adam")]


def tokens() -> Tensor:
    return tokens_on_the_host().to(DEVICE)


def trained(cfg: Config, model: nn.Module, points: list[str], ids: Tensor) -> CoderTrainer:
    run = CoderTrainer(cfg, dict.fromkeys(points, 32), len(ids), DEVICE)
    for batch in ids[: run.length.samples].split(cfg.batch_size):
        train_end_to_end(run, model, batch.cpu(), batch)
    assert run.done
    return run


@pytest.mark.parametrize(
    ("family", "loss_fn", "grad_acc_steps"),
    [("llama", "ce", 1), ("llama", "kl", 4), ("gpt2", "ce", 4), ("gpt2", "kl", 1), ("neox", "ce", 1), ("neox", "kl", 4)],
)
def test_with_the_corrections_off_saes_are_bit_identical_to_sparsifys(family: str, loss_fn: str, grad_acc_steps: int) -> None:
    points, ids = POINTS[family, "sae"], tokens()
    cfg = tiny_config(
        "sae", loss_fn=loss_fn, corrections=False, lr_warmup_steps=3, lr=0.01, grad_acc_steps=grad_acc_steps, exclude_tokens=[3, 4],
        dead_feature_threshold=60,
    )  # fmt: skip
    torch.set_float32_matmul_precision("high")
    ours = trained(cfg, tiny_causal_model(family), points, ids).coders
    _, train_config = sparsify_configs(cfg, points, run_length(cfg, len(ids)).steps)
    dataset = Dataset.from_dict({"input_ids": ids.tolist()}).with_format("torch")
    model = tiny_causal_model(family)
    model.config.use_cache = (
        False  # as ours: with a cache keys lie otherwise in memory, and a GPU may round a product of them otherwise
    )
    trainer = Trainer(train_config, dataset, model)
    trainer.save = trainer.save_best = lambda *_: None
    trainer.fit()
    assert_equal(ours, trainer.saes)


def dense_output(coder: nn.Module, given: Tensor) -> Tensor:
    """The coder's output for `given` [batch, position, d], with dense latents."""
    flat = given.flatten(0, 1)
    preacts = F.linear(flat if coder.cfg.transcode else flat - coder.b_dec, coder.encoder.weight, coder.encoder.bias)
    kth = preacts.topk(coder.cfg.k).values[:, -1:]
    return (torch.where(preacts >= kth, F.relu(preacts), 0) @ coder.W_dec + coder.b_dec).view(given.shape)


class Replaced(nn.Module):
    """A module whose output is the coder's, written without hooks; positions where `real` is set keep the module's own."""

    def __init__(self, module: nn.Module, coder: nn.Module, real: Tensor):
        super().__init__()
        self.module, self.coder, self.real = module, coder, real

    def forward(self, *args: Tensor, **kwargs: object) -> object:
        result = self.module(*args, **kwargs)
        output = result[0] if isinstance(result, tuple) else result
        given = (args[0] if args else kwargs["hidden_states"]) if self.coder.cfg.transcode else output
        new = torch.where(self.real[..., None], output, dense_output(self.coder, given.float()).to(output.dtype))
        return (new, *result[1:]) if isinstance(result, tuple) else new


PLACES = {
    "mlp": ["layers.1.mlp", "layers.2.mlp"],
    "attention": ["layers.0.self_attn", "layers.2.self_attn"],
    "residual": ["layers.1", "layers.2"],
}


@pytest.mark.usefixtures("float32_coders")
@pytest.mark.parametrize("loss_fn", ["ce", "kl"])
@pytest.mark.parametrize("place", list(PLACES))
@pytest.mark.parametrize("model_type", ["sae", "transcoder"])
def test_losses_and_gradients_equal_a_model_with_its_modules_exchanged(model_type: str, place: str, loss_fn: str) -> None:
    cfg = tiny_config(
        model_type, loss_fn=loss_fn, auxk_alpha=0.0, exclude_first_tokens=1, exclude_tokens=[5], lr=0.01, batch_size=4
    )
    points, ids, model = PLACES[place], tokens(), tiny_causal_model("llama")
    run = trained(cfg, model, points, ids[:24])
    run.averages.clear()
    run.length = run_length(cfg, 100)  # one more batch, without its optimizer step
    run.before_optimizers = list  # type: ignore[method-assign]
    if model_type == "sae":
        for coder in run.coders.values():
            coder.set_decoder_norm_to_unit_norm()
    coders = copy.deepcopy(run.coders)
    batch = ids[24:28]
    train_end_to_end(run, model, batch.cpu(), batch)

    real = ~PositionFilter.of(run.cfg).by_token(batch).view(batch.shape)
    assert real.any()
    exchanged = tiny_causal_model("llama")
    for point in points:
        parent, _, name = point.rpartition(".")
        setattr(
            exchanged.base_model.get_submodule(parent),
            name,
            Replaced(exchanged.base_model.get_submodule(point), coders[point], real),
        )
    logits = exchanged(input_ids=batch, use_cache=False).logits
    if loss_fn == "ce":
        expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
    else:
        clean = model(input_ids=batch).logits
        expected = F.kl_div(logits.log_softmax(-1), clean.log_softmax(-1), log_target=True, reduction="none").sum(-1).mean()
    expected.backward()
    assert run.metrics()[loss_fn] == pytest.approx(expected.item(), rel=1e-4)  # a divergence near 0, in float32
    for point in points:
        for mine, other in zip(run.coders[point].parameters(), coders[point].parameters(), strict=True):
            # A GPU sums in another order than dense autograd.
            torch.testing.assert_close(mine.grad, other.grad, atol=by_device(cpu=1e-6, gpu=1e-5), rtol=1e-3)


def test_kl_of_an_unchanged_model_is_zero_and_never_negative() -> None:
    model, ids = tiny_causal_model("gpt2"), tokens()[:4]
    assert end_to_end_loss(model, ids, ["h.1"], lambda _, seen: seen.output, "kl").item() == pytest.approx(0, abs=1e-6)
    assert end_to_end_loss(model, ids, ["h.1"], lambda _, seen: 0 * seen.output, "kl").item() > 0


def test_several_seeds_are_trained_each_in_a_forward_of_its_own() -> None:
    model, ids = tiny_causal_model("llama"), tokens()
    both = trained(tiny_config("transcoder", loss_fn="ce", init_seeds=[1, 2], lr=0.01), model, PLACES["mlp"], ids)
    alone = trained(tiny_config("transcoder", loss_fn="ce", init_seeds=[2], lr=0.01), model, PLACES["mlp"], ids)
    for point in PLACES["mlp"]:
        for a, b in zip(both.coders[f"{point}/seed2"].parameters(), alone.coders[point].parameters(), strict=True):
            assert torch.equal(a, b)


def test_auxk_acts_beside_an_end_to_end_loss() -> None:
    model, ids = tiny_causal_model("llama"), tokens()
    with_it, without = (
        trained(
            tiny_config("sae", loss_fn="ce", auxk_alpha=a, dead_feature_threshold=40, lr=0.01), model, ["layers.1"], ids
        ).coders["layers.1"]
        for a in (0.5, 0.0)
    )
    assert not torch.equal(with_it.W_dec, without.W_dec)


@pytest.mark.slow
@pytest.mark.parametrize("loss_fn", ["ce", "kl"])
@pytest.mark.parametrize("model_type", ["sae", "transcoder"])
def test_a_run_on_the_bundled_model_lowers_its_heldout_loss(cache, tmp_path, model_type: str, loss_fn: str) -> None:
    settings = [
        f"model_type={model_type}",
        f"loss_fn={loss_fn}",
        "layers=[1,3]",
        "max_samples=256",
        "save_every=8",
        "keep_every=8",
        "lr=3e-3",
        "eval_samples=16",
    ]
    cfg = short(cache, tmp_path, *settings)
    engine.train([cfg])
    name = {"ce": "heldout/ce_loss_with_sae/together", "kl": "heldout/kl_div_with_sae/together"}[loss_fn]
    rows = [row for row in lines(run_dir(cfg)) if name in row]
    losses = [row[name] for row in rows]
    assert len(rows) == 8
    assert losses[-1] < losses[0]
    assert all(f"heldout/fvu/layers.{i}{'.mlp' if model_type == 'transcoder' else ''}" in rows[-1] for i in (1, 3))
    best = rows[losses.index(min(losses))]
    kept = weights(run_dir(cfg) / "snapshots" / f"step{best['step']}_tokens{best['tokens']}")
    assert all(torch.equal(value, kept[name]) for name, value in weights(run_dir(cfg) / "best").items())


def test_an_end_to_end_run_is_refused_in_a_pack_and_on_a_model_without_a_head(cache, tmp_path, tiny_folder) -> None:
    with pytest.raises(ConfigError, match="train it apart"):
        engine.train([short(cache, tmp_path, "loss_fn=ce"), short(cache, tmp_path)])
    with pytest.raises(ConfigError, match=r"loss_fn=ce: .*predicts no next token"):
        engine.train([short(cache, tmp_path, "loss_fn=ce", f"model_name={tiny_folder['bert']}", "layers=[1]")])


@pytest.mark.usefixtures("float32_coders")
@pytest.mark.parametrize(
    ("loss_fn", "grad_acc_steps", "log_every", "dtype"),
    [  # each value of a setting meets each value of any other
        ("ce", 1, 1, torch.float32),
        ("ce", 4, 7, torch.float32),
        ("ce", 1, 7, torch.bfloat16),
        ("ce", 4, 1, torch.bfloat16),
        ("kl", 1, 7, torch.float32),
        ("kl", 4, 1, torch.float32),
        ("kl", 1, 1, torch.bfloat16),
        ("kl", 4, 7, torch.bfloat16),
    ],
)
def test_logged_losses_are_the_mean_over_exactly_the_batches_since_the_line_before(
    loss_fn: str, grad_acc_steps: int, log_every: int, dtype: torch.dtype
) -> None:
    cfg = tiny_config(
        "sae", loss_fn=loss_fn, auxk_alpha=0.0, lr=1e-30, grad_acc_steps=grad_acc_steps, batch_size=1, normalize_decoder=False
    )
    ids, model = tokens()[: 9 * grad_acc_steps], tiny_causal_model("llama").to(dtype)
    run = CoderTrainer(cfg, {"layers.1": 32}, len(ids), DEVICE)
    logged, spans, begun = [], [], 0
    for number, batch in enumerate(ids.split(1), 1):
        stepped = train_end_to_end(run, model, batch.cpu(), batch)
        if stepped and (run.step % log_every == 0 or run.done):
            logged.append(run.metrics()[loss_fn])
            spans.append((begun, number))
            begun = number
    exchanged = tiny_causal_model("llama").to(dtype)
    real = torch.zeros_like(ids[:1], dtype=torch.bool)
    exchanged.base_model.layers[1] = Replaced(exchanged.base_model.layers[1], run.coders["layers.1"], real)
    with torch.no_grad():
        for value, (start, end) in zip(logged, spans, strict=True):
            each = []
            for batch in ids[start:end].split(1):
                logits, clean = (m(input_ids=batch, use_cache=False).logits.float() for m in (exchanged, model))
                if loss_fn == "ce":
                    each.append(F.cross_entropy(logits[0, :-1], batch[0, 1:]))
                else:
                    each.append(
                        F.kl_div(logits.log_softmax(-1), clean.log_softmax(-1), log_target=True, reduction="none").sum(-1).mean()
                    )
            assert value == pytest.approx(torch.stack(each).mean().item(), rel=1e-5 if dtype == torch.float32 else 2e-2)
