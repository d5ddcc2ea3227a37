"""One run: its numbers against an independent computation, its corrections, its counters."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers.device import DEVICE
from helpers.tiny_models import VOCABULARY, tiny_config, tiny_model
from helpers.trainers import train_alone
from sae_transcoder.coder.positions import PositionFilter
from sae_transcoder.config.run_length import run_length
from sae_transcoder.language_model.forward import Activations, capture
from sae_transcoder.training.coder_copies import copy_coders
from sae_transcoder.training.coder_trainer import CoderTrainer
from sae_transcoder.training.trainer_state import restore, training_state

pytestmark = pytest.mark.device

POINT = {"sae": "layers.1", "transcoder": "layers.1.mlp"}


def tokens(samples: int, positions: int = 16) -> Tensor:
    return torch.randint(0, VOCABULARY, (samples, positions), generator=torch.Generator().manual_seed(1))


def new_run(cfg, samples: int) -> CoderTrainer:
    return CoderTrainer(cfg, {POINT[cfg.model_type]: 32}, samples, DEVICE)


def batches(cfg, ids: Tensor, model) -> list[tuple[Tensor, dict[str, Activations]]]:
    return [(b, capture(model, [POINT[cfg.model_type]], b.to(DEVICE))) for b in ids.split(cfg.batch_size)]


def trained(cfg, ids: Tensor) -> CoderTrainer:
    run = new_run(cfg, len(ids))
    for batch, seen in batches(cfg, ids, tiny_model("llama")):
        if not run.done:
            train_alone(run, batch, seen)
    assert run.done
    return run


@torch.no_grad()
def independent_losses(coder, x: Tensor, y: Tensor, k: int, dead: Tensor) -> tuple[float, float, float]:
    """FVU, AuxK loss and Multi-TopK FVU, token by token with dense vectors in float64, on the CPU."""
    weight, bias, decoder, b_dec, x, y = (
        values.cpu().double() for values in (coder.encoder.weight, coder.encoder.bias, coder.W_dec, coder.b_dec, x, y)
    )
    dead = dead.cpu()
    variance = (y - y.mean(0)).pow(2).sum()
    sums = torch.zeros(3, dtype=torch.float64)
    for given, target in zip(x, y, strict=True):
        preacts = weight @ (given if coder.cfg.transcode else given - b_dec) + bias

        def output(among: Tensor, many: int, preacts: list[float] = preacts.tolist()) -> Tensor:  # noqa: B008
            top = sorted(among.nonzero().flatten().tolist(), key=lambda i: -preacts[i])[:many]
            return sum((max(0.0, preacts[i]) * decoder[i] for i in top), torch.zeros_like(b_dec))

        every = torch.ones_like(dead)
        error = target - output(every, k) - b_dec
        sums[0] += error.pow(2).sum()
        sums[2] += (target - output(every, 4 * k) - b_dec).pow(2).sum()
        if dead.any():
            many = min(len(b_dec) // 2, int(dead.sum()))
            sums[1] += min(int(dead.sum()) / (len(b_dec) // 2), 1) * (output(dead, many) - error).pow(2).sum()
    return tuple((sums / variance).tolist())


@pytest.mark.usefixtures("float32_coders")
@pytest.mark.parametrize(
    ("model_type", "grad_acc_steps", "log_every", "micro_acc_steps", "dtype"),
    [  # each value of a setting meets each value of any other
        ("sae", 1, 1, 1, torch.float32),
        ("sae", 1, 7, 3, torch.bfloat16),
        ("sae", 4, 1, 3, torch.float32),
        ("sae", 4, 7, 1, torch.bfloat16),
        ("transcoder", 1, 1, 3, torch.bfloat16),
        ("transcoder", 1, 7, 1, torch.float32),
        ("transcoder", 4, 1, 1, torch.bfloat16),
        ("transcoder", 4, 7, 3, torch.float32),
    ],
)
def test_logged_numbers_equal_an_independent_computation(model_type, grad_acc_steps, log_every, micro_acc_steps, dtype) -> None:
    cfg = tiny_config(
        model_type, grad_acc_steps=grad_acc_steps, micro_acc_steps=micro_acc_steps, log_every=log_every, batch_size=1, k=3, lr=0.01,
        multi_topk=True, dead_feature_threshold=20, k_decay_steps=3 if grad_acc_steps == 1 else 0, exclude_first_tokens=1,
        expansion_factor=2, lr_warmup_steps=2,
    )  # fmt: skip
    steps = 8
    ids = tokens(steps * grad_acc_steps, 8)
    run, point = new_run(cfg, len(ids)), POINT[model_type]
    coder = run.coders[point]
    idle = torch.zeros(coder.num_latents, device=DEVICE)
    fired, expected, last = torch.zeros_like(idle, dtype=torch.bool), [], 0
    saw_dead = False
    for batch, seen in batches(cfg, ids, tiny_model("llama").to(dtype)):
        y = seen[point].output[:, 1:].flatten(0, 1).float()
        x = seen[point].input[:, 1:].flatten(0, 1).float() if model_type == "transcoder" else y
        if run.batch == 0:  # what the run will set before it trains
            run.set_biases(point, x, y, len(y))
        if model_type == "sae":
            coder.set_decoder_norm_to_unit_norm()
        dead = idle > cfg.dead_feature_threshold
        saw_dead |= bool(dead.any())
        k = coder.cfg.k
        expected.append(independent_losses(coder, x, y, k, dead))
        preacts = torch.nn.functional.linear(
            x if model_type == "transcoder" else x - coder.b_dec, coder.encoder.weight, coder.encoder.bias
        )
        kept = preacts.topk(k)
        fired[kept.indices[kept.values > 0]] = True
        if not train_alone(run, batch, seen):
            continue
        idle += 7 * grad_acc_steps
        idle[fired] = 0
        fired.zero_()
        if run.step % log_every == 0 or run.done:
            got = run.metrics()
            fvu, aux, multi = torch.tensor(expected).mean(0).tolist()
            assert got[f"fvu/{point}"] == pytest.approx(fvu, rel=1e-4)
            assert got[f"auxk/{point}"] == pytest.approx(aux, rel=1e-4, abs=1e-7)
            assert got[f"multi_topk_fvu/{point}"] == pytest.approx(multi, rel=1e-4)
            dead_fraction = (idle > 20).float().mean().item() if run.tokens > 20 else math.nan
            assert got[f"dead_fraction/{point}"] == pytest.approx(dead_fraction, nan_ok=True)
            assert (run.k_used, run.tokens) == (k, run.step * grad_acc_steps * 8)
            rate = 0.01 * min((run.step - 1) / 2, (steps - run.step + 1) / (steps - 2))
            assert run.lr_used == pytest.approx(rate)
            expected, last = [], run.step
    assert last == steps
    assert saw_dead


def test_the_learning_rate_falls_to_zero_over_optimizer_steps_where_sparsifys_stays_high() -> None:
    ids = tokens(64)
    ours = trained(tiny_config("sae", grad_acc_steps=4, batch_size=2, lr=0.01), ids)
    theirs = trained(tiny_config("sae", grad_acc_steps=4, batch_size=2, lr=0.01, corrections=False), ids)
    assert ours.step == theirs.step == 8
    assert ours.optimizers[0].param_groups[0]["lr"] == 0
    assert theirs.optimizers[0].param_groups[0]["lr"] > 0.007


@pytest.mark.usefixtures("float32_coders")  # a selection may hang on the last bit of a bfloat16 number
def test_micro_batches_change_no_gradient() -> None:
    ids = tokens(8)
    whole, pieces = (trained(tiny_config("sae", micro_acc_steps=n, optimizer="muon", lr=0.01), ids) for n in (1, 4))
    for a, b in zip(whole.coders["layers.1"].parameters(), pieces.coders["layers.1"].parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-2)  # muon's iteration is in bfloat16


def test_a_last_step_of_fewer_batches_is_made_and_weighted_by_what_it_has() -> None:
    cfg = tiny_config("sae", grad_acc_steps=4, batch_size=2)
    assert run_length(cfg, 20).steps == 3
    run = new_run(cfg, 20)
    seen_divisors = []
    for batch, seen in batches(cfg, tokens(20), tiny_model("llama")):
        seen_divisors.append(run.batches_in_step)
        train_alone(run, batch, seen)
    assert seen_divisors == [4] * 8 + [2] * 2
    assert (run.step, run.done) == (3, True)


def test_a_pieces_sum_is_the_batch_and_max_steps_ends_a_run() -> None:
    cfg = tiny_config("sae", grad_acc_steps=2, batch_size=2, max_steps=3)
    assert (run_length(cfg, 100).samples, run_length(cfg, 100).batches, run_length(cfg, 100).steps) == (12, 6, 3)
    assert trained(cfg, tokens(40)).step == 3


def test_excluded_tokens_reach_neither_coder_nor_counts() -> None:
    cfg = tiny_config("sae", exclude_tokens=[5, 6], exclude_first_tokens=2)
    ids = tokens(4)
    ids[:, 3] = 5
    run = new_run(cfg, 4)
    mask = PositionFilter.of(run.cfg).by_token(ids).view(ids.shape)
    assert not mask[:, :2].any()
    assert not mask[:, 3].any()
    assert torch.equal(mask[:, 4:], ~torch.isin(ids[:, 4:], torch.tensor([5, 6])))
    seen = Activations(torch.randn(4, 16, 32, device=DEVICE), torch.randn(4, 16, 32, device=DEVICE))
    x, y = run.positions.inputs_and_targets(seen, run.positions.kept(seen, mask.flatten()))
    assert torch.equal(y, seen.output[mask])
    assert x is y


def test_tokens_of_outlying_norm_are_left_out_by_the_coders_input() -> None:
    for kind in ("sae", "transcoder"):
        run = new_run(tiny_config(kind, max_norm_multiple=3.0), 4)
        given, output = (torch.randn(4, 16, 32, device=DEVICE) for _ in range(2))
        (given if kind == "transcoder" else output)[0, 0] *= 100
        seen = Activations(given, output)
        x, y = run.positions.inputs_and_targets(seen, run.positions.kept(seen, None))
        assert len(x) == len(y) == 63
        assert torch.equal(y, output.flatten(0, 1)[1:])


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_batch_of_excluded_tokens_only_is_passed_over() -> None:
    cfg = tiny_config("sae", exclude_tokens=[7], batch_size=2, optimizer="muon")
    ids = tokens(6)
    ids[:2] = 7
    run = trained(cfg, ids)
    assert all(torch.isfinite(p).all() for p in run.coders["layers.1"].parameters())
    assert (run.batch, run.step) == (3, 3)


def test_k_falls_to_its_final_value_over_k_decay_steps() -> None:
    cfg = tiny_config("sae", k=4, k_decay_steps=4, batch_size=1, expansion_factor=2)
    run, seen_k = new_run(cfg, 6), []
    for batch, seen in batches(cfg, tokens(6), tiny_model("llama")):
        seen_k.append(run.coders["layers.1"].cfg.k)
        train_alone(run, batch, seen)
    assert seen_k == [64, 49, 34, 19, 4, 4]


@pytest.mark.parametrize("settings", [dict(activation="groupmax"), dict(multi_topk=True)], ids=lambda s: next(iter(s)))
def test_k_may_decay_where_sparsify_crashes(settings: dict) -> None:
    run = trained(tiny_config("sae", k_decay_steps=2, batch_size=1, **settings), tokens(4))
    assert run.coders["layers.1"].cfg.k == 4


@pytest.mark.parametrize("optimizer", ["adam", "muon", "signum"])
def test_exported_coders_have_unit_norm_decoders_and_leave_the_run_as_it_was(optimizer: str) -> None:
    run = trained(tiny_config("sae", optimizer=optimizer, k_decay_steps=2, batch_size=1), tokens(4))
    run.coders["layers.1"].cfg.k = 9
    before = [p.clone() for p in run.coders["layers.1"].parameters()]
    exported = copy_coders(run)["layers.1"]
    torch.testing.assert_close(exported.W_dec.norm(dim=1), torch.ones(exported.num_latents, device=DEVICE))
    assert exported.cfg.k == 4
    assert all(torch.equal(a, b) for a, b in zip(before, run.coders["layers.1"].parameters(), strict=True))


def test_weight_decay_reaches_the_optimizers_and_null_leaves_their_own() -> None:
    for optimizer, unset in [("adam", 0.0), ("muon", 0.1)]:
        for given, expected in [(None, unset), (0.0, 0.0), (0.3, 0.3)]:
            run = new_run(tiny_config("sae", optimizer=optimizer, weight_decay=given), 4)
            assert run.optimizers[0].param_groups[0]["weight_decay"] == expected


def test_several_seeds_are_several_coders_each_as_if_alone() -> None:
    ids = tokens(6)
    both = trained(tiny_config("sae", init_seeds=[1, 2]), ids)
    alone = trained(tiny_config("sae", init_seeds=[2]), ids)
    for a, b in zip(both.coders["layers.1/seed2"].parameters(), alone.coders["layers.1"].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("model_type", ["sae", "transcoder"])
@pytest.mark.parametrize("optimizer", ["adam", "muon", "signum"])
def test_a_restored_run_ends_bit_identical_to_an_undisturbed_one(optimizer: str, model_type: str, tmp_path: Path) -> None:
    cfg = tiny_config(
        model_type, optimizer=optimizer, grad_acc_steps=4, batch_size=1, init_seeds=[0, 1], k_decay_steps=2, dead_feature_threshold=40,
        log_every=2, max_norm_multiple=2.0, multi_topk=True, lr_warmup_steps=None if optimizer == "signum" else 1,
    )  # fmt: skip
    read = batches(cfg, tokens(12), tiny_model("llama"))
    undisturbed, stopped = (new_run(cfg, len(read)) for _ in range(2))
    for batch, seen in read:
        train_alone(undisturbed, batch, seen)
    logged = undisturbed.metrics()
    for i, (batch, seen) in enumerate(read, start=1):
        train_alone(stopped, batch, seen)
        if i not in (1, 4, 6, 9):
            continue
        torch.save(training_state(stopped), tmp_path / "state.pt")
        restored = new_run(cfg, len(read))
        restore(restored, torch.load(tmp_path / "state.pt", weights_only=True))
        for later, given in read[i:]:
            train_alone(restored, later, given)
        for name, coder in undisturbed.coders.items():
            for key, value in coder.state_dict().items():
                assert torch.equal(restored.coders[name].state_dict()[key], value), f"{name}.{key} from batch {i}"
        assert restored.metrics() == logged
        assert (restored.step, restored.tokens, restored.k_used, restored.lr_used) == (
            3, 192, undisturbed.k_used, undisturbed.lr_used,
        )  # fmt: skip


def test_batches_without_a_token_count_in_no_average() -> None:
    ids = tokens(6)
    ids[2:4] = 7
    run = trained(tiny_config("sae", exclude_tokens=[7], lr=1e-20), ids)
    alone = trained(tiny_config("sae", exclude_tokens=[7], lr=1e-20), torch.cat([ids[:2], ids[4:]]))
    assert run.metrics()["fvu/layers.1"] == pytest.approx(alone.metrics()["fvu/layers.1"])
    assert "fvu/layers.1" not in run.metrics(), "nothing since the last line"


def test_activations_are_those_of_the_moment_though_a_later_module_writes_into_them() -> None:
    from transformers import AutoModel, FalconConfig

    torch.manual_seed(0)
    config = FalconConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, parallel_attn=True)
    model = AutoModel.from_config(config).eval().to(DEVICE)
    ids = tokens(2).to(DEVICE)
    alone = capture(model, ["h.0.mlp"], ids)["h.0.mlp"].output.clone()
    assert torch.equal(capture(model, ["h.0.mlp", "h.1.mlp"], ids)["h.0.mlp"].output, alone)


def test_adam_is_torchs_also_where_bitsandbytes_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    eight_bit = types.ModuleType("bitsandbytes.optim")
    eight_bit.Adam8bit = None
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", eight_bit)
    assert type(new_run(tiny_config("sae"), 4).optimizers[0]) is torch.optim.Adam
