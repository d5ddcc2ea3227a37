"""Held-out metrics against an independent computation, token by token, and against coders whose scores are known."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from helpers.device import DEVICE
from helpers.tiny_models import VOCABULARY, tiny_causal_model, tiny_config, tiny_model
from sae_transcoder.config import Config
from sae_transcoder.evaluation.heldout import CodersToEvaluate, EvalResult, measure
from sae_transcoder.language_model.loading import DEMO
from sae_transcoder.run_store import eval_file
from sae_transcoder.training.coder_trainer import CoderTrainer

pytestmark = pytest.mark.device

LAYERS = {"llama": "layers.{}", "gpt2": "h.{}", "neox": "layers.{}", "demo": "layers.{}"}
SITES = {
    "sae": {"llama": "", "gpt2": "", "neox": "", "demo": ""},
    "transcoder": {"llama": ".mlp", "gpt2": ".mlp", "neox": ".mlp", "demo": ".mlp"},
}


def causal_model(family: str) -> PreTrainedModel:
    if family != "demo":
        return tiny_causal_model(family)
    return AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval().requires_grad_(False).to(DEVICE)


def tokens(model: PreTrainedModel, samples: int = 6, positions: int = 16) -> np.ndarray:
    ids = torch.randint(0, model.config.vocab_size, (samples, positions), generator=torch.Generator().manual_seed(1))
    ids[:, 5] = 7
    return ids.numpy()


def random_coders(cfg: Config, points: list[str], width: int) -> CodersToEvaluate:
    """Coders of random weights that fire often and reconstruct something."""
    run = CoderTrainer(cfg, dict.fromkeys(points, width), 100, DEVICE)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for coder in run.coders.values():
            for parameter in coder.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else noise / 10)
    return CodersToEvaluate(cfg, {name: coder.requires_grad_(False) for name, coder in run.coders.items()})


class Exchanged(nn.Module):
    """A module that gives `new(its input, its output)` [position, d] for one sequence, computed on the CPU."""

    def __init__(self, module: nn.Module, new: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.module, self.new = module, new

    def forward(self, *args: Tensor, **kwargs: object) -> object:
        result = self.module(*args, **kwargs)
        output = result[0] if isinstance(result, tuple) else result
        given = args[0] if args else kwargs["hidden_states"]
        new = self.new(given[0].cpu(), output[0].cpu())[None].to(output.device)
        return (new, *result[1:]) if isinstance(result, tuple) else new


def dense(coder: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """A coder's output [d] and its latents [latent] for one input x [d], as vectors in float64."""
    weight, bias, decoder, b_dec = (p.cpu().double() for p in (coder.encoder.weight, coder.encoder.bias, coder.W_dec, coder.b_dec))
    x = x.double()
    preacts = weight @ (x if coder.cfg.transcode else x - b_dec) + bias
    acts = torch.zeros_like(preacts)
    for i in sorted(range(len(preacts)), key=lambda i: -float(preacts[i]))[: coder.cfg.k]:
        acts[i] = max(0.0, float(preacts[i]))
    out = acts @ decoder + b_dec
    return (out if coder.W_skip is None else out + coder.W_skip.cpu().double() @ x), acts


class Independent:
    """Every metric computed by itself, one sequence and one token at a time, by exchanging modules of the model."""

    def __init__(self, model: PreTrainedModel, run: CodersToEvaluate, ids: np.ndarray):
        self.model, self.cfg, self.coders = model, run.cfg, run.coders
        self.ids = [torch.from_numpy(row)[None] for row in ids]

    def counts(self, row: Tensor, position: int) -> bool:
        return position >= self.cfg.exclude_first_tokens and int(row[0, position]) not in self.cfg.exclude_tokens

    def logits(self, row: Tensor, new: dict[str, Callable[[Tensor, Tensor], Tensor]]) -> Tensor:
        """The next-token logits [position, vocabulary] in float64 with modules exchanged."""
        base, kept = self.model.base_model, {}
        for point, function in new.items():
            parent, _, name = point.rpartition(".")
            kept[point] = base.get_submodule(point)
            setattr(base.get_submodule(parent), name, Exchanged(kept[point], function))
        try:
            return self.model(input_ids=row.to(DEVICE), use_cache=False).logits[0].cpu().double()
        finally:
            for point, module in kept.items():
                parent, _, name = point.rpartition(".")
                setattr(base.get_submodule(parent), name, module)

    def replaced(self, row: Tensor, coder: nn.Module | None) -> Callable[[Tensor, Tensor], Tensor]:
        """Where tokens count, the coder's output in the place of the module's; None: zeros."""

        def new(given: Tensor, output: Tensor) -> Tensor:
            rows = []
            for position, (one, other) in enumerate(zip(given, output, strict=True)):
                if not self.counts(row, position):
                    rows.append(other)
                elif coder is None:
                    rows.append(torch.zeros_like(other))
                else:
                    rows.append(dense(coder, one if coder.cfg.transcode else other)[0].to(other.dtype))
            return torch.stack(rows)

        return new

    def behaviour(self, points: dict[str, str]) -> dict[str, float]:
        """What the model does with the coders {hookpoint: name} in place."""
        sums, predictions, places = dict.fromkeys(("clean", "sae", "zero", "kl_sae", "kl_zero"), 0.0), 0, 0
        for row in self.ids:
            clean = self.logits(row, {})
            sae = self.logits(row, {p: self.replaced(row, self.coders[name]) for p, name in points.items()})
            zero = self.logits(row, {p: self.replaced(row, None) for p in points})
            for position in range(row.shape[1]):
                if not self.counts(row, position):
                    continue
                places += 1
                p = clean[position].softmax(0)
                sums["kl_sae"] += float((p * (p.log() - sae[position].softmax(0).log())).sum())
                sums["kl_zero"] += float((p * (p.log() - zero[position].softmax(0).log())).sum())
                if position + 1 < row.shape[1]:
                    predictions += 1
                    for name, logits in (("clean", clean), ("sae", sae), ("zero", zero)):
                        sums[name] -= float(logits[position].log_softmax(0)[row[0, position + 1]])
        ce, kl = {n: sums[n] / predictions for n in ("clean", "sae", "zero")}, {n: sums[n] / places for n in ("kl_sae", "kl_zero")}
        return {
            "ce_loss_without_sae": ce["clean"], "ce_loss_with_sae": ce["sae"], "ce_loss_with_ablation": ce["zero"],
            "ce_loss_score": (ce["zero"] - ce["sae"]) / (ce["zero"] - ce["clean"]),
            "kl_div_with_sae": kl["kl_sae"], "kl_div_with_ablation": kl["kl_zero"],
            "kl_div_score": 1 - kl["kl_sae"] / kl["kl_zero"], "total_tokens_eval_reconstruction": places,
        }  # fmt: skip

    def own(self, point: str, name: str) -> tuple[dict[str, float], Tensor]:
        """The coder's own metrics, and the share of tokens on which each latent fires."""
        coder, ys, outs, latents, positions = self.coders[name], [], [], [], 0
        for row in self.ids:
            seen: list[tuple[Tensor, Tensor]] = []
            self.logits(row, {point: lambda given, output, seen=seen: (seen.append((given, output)), output)[1]})
            for position in range(row.shape[1]):
                positions += 1
                if self.counts(row, position):
                    given, output = (side[position] for side in seen[0])
                    out, acts = dense(coder, given if coder.cfg.transcode else output)
                    ys.append(output.double())
                    outs.append(out)
                    latents.append(acts)
        y, out, acts = torch.stack(ys), torch.stack(outs), torch.stack(latents)
        fvu = float(((y - out) ** 2).sum() / ((y - y.mean(0)) ** 2).sum())
        density = (acts > 0).double().mean(0)
        cosines = {}
        for side, rows in (("encoder", coder.encoder.weight), ("decoder", coder.W_dec)):
            each = torch.stack([F.cosine_similarity(one[None], rows) for one in rows.cpu().double()])
            cosines[side] = float(each.fill_diagonal_(-2).max(1).values.mean())
        found = {
            "fvu": fvu, "explained_variance": 1 - fvu,
            "mse": float(((y - out) ** 2).sum(1).mean()), "cossim": float(F.cosine_similarity(y, out).mean()),
            "l2_norm_in": float(y.norm(dim=1).mean()), "l2_norm_out": float(out.norm(dim=1).mean()),
            "l2_ratio": float((out.norm(dim=1) / y.norm(dim=1)).mean()),
            "relative_reconstruction_bias": float((out**2).sum() / (y * out).sum()),
            "l0": float((acts > 0).sum(1).double().mean()), "l1": float(acts.sum(1).mean()),
            "total_tokens_eval_sparsity_variance": len(y), "frac_tokens_excluded": 1 - len(y) / positions,
            "frac_alive": float((density > 0).double().mean()),
            "freq_over_1_percent": float((density > 0.01).double().mean()),
            "freq_over_10_percent": float((density > 0.1).double().mean()),
            "normalized_freq_over_1_percent": float(density[density > 0.01].sum() / density.sum()),
            "normalized_freq_over_10_percent": float(density[density > 0.1].sum() / density.sum()),
            "average_max_encoder_cosine_sim": cosines["encoder"], "average_max_decoder_cosine_sim": cosines["decoder"],
        }  # fmt: skip
        return found, density


def assert_close(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "demo"])
@pytest.mark.parametrize("model_type", ["sae", "transcoder"])
def test_every_metric_equals_an_independent_computation(model_type: str, family: str) -> None:
    model = causal_model(family)
    points = [LAYERS[family].format(i) + SITES[model_type][family] for i in (1, 2)]
    cfg = tiny_config(model_type, exclude_first_tokens=1, exclude_tokens=[7], skip_connection=model_type == "transcoder", k=3)
    one, ids = random_coders(cfg, points, model.config.hidden_size), tokens(model, samples=3)
    (found,) = measure(model, [one], ids, all_metrics=True)
    independent = Independent(model, one, ids)
    for point in points:
        own, density = independent.own(point, point)
        assert_close(found.coders[point], own | independent.behaviour({point: point}))
        np.testing.assert_allclose(found.densities[point], density.numpy())
        assert set(found.coders[point]) == set(eval_file.NAMES)
    assert_close(found.together[""], independent.behaviour(dict(zip(points, points, strict=True))))


def perfect(cfg: Config, point: str, width: int) -> CodersToEvaluate:
    """An SAE whose latents are the directions of the space, forwards and backwards."""
    one = random_coders(cfg, [point], width)
    coder = one.coders[point]
    both = torch.cat([torch.eye(width), -torch.eye(width)]).to(DEVICE)
    for parameter, value in ((coder.encoder.weight, both), (coder.W_dec, both), (coder.encoder.bias, 0), (coder.b_dec, 0)):
        parameter.data = torch.zeros_like(parameter) + value
    return one


def test_a_perfect_sae_loses_nothing() -> None:
    model = tiny_causal_model("llama")
    cfg = tiny_config("sae", num_latents=64, k=64)
    (found,) = measure(model, [perfect(cfg, "layers.1", 32)], tokens(model), all_metrics=True)
    metrics = found.coders["layers.1"]
    assert metrics["ce_loss_score"] == pytest.approx(1, abs=1e-5)
    assert metrics["kl_div_score"] == pytest.approx(1, abs=1e-5)
    assert metrics["fvu"] == pytest.approx(0, abs=1e-9)
    assert metrics["l2_ratio"] == pytest.approx(1, abs=1e-6)


def test_a_perfect_transcoder_of_a_linear_module_loses_nothing() -> None:
    model = tiny_causal_model("gpt2")
    cfg = tiny_config("transcoder", skip_connection=True)
    one = random_coders(cfg, ["h.1.attn.c_proj"], 32)
    coder, module = one.coders["h.1.attn.c_proj"], model.base_model.get_submodule("h.1.attn.c_proj")
    coder.W_dec.data.zero_()
    coder.W_skip.data, coder.b_dec.data = module.weight.T.clone(), module.bias.clone()
    (found,) = measure(model, [one], tokens(model), all_metrics=True)
    assert found.coders["h.1.attn.c_proj"]["ce_loss_score"] == pytest.approx(1, abs=1e-5)
    assert found.coders["h.1.attn.c_proj"]["explained_variance"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("model_type", ["sae", "transcoder"])
def test_predicting_the_mean_explains_no_variance(model_type: str) -> None:
    model, point = tiny_causal_model("llama"), "layers.1.mlp"
    one = random_coders(tiny_config(model_type), [point], 32)
    coder, ids = one.coders[point], tokens(model)
    coder.W_dec.data.zero_()
    seen: list[Tensor] = []
    handle = model.base_model.get_submodule(point).register_forward_hook(lambda *args: seen.append(args[2]))
    model(input_ids=torch.from_numpy(ids).to(DEVICE))
    handle.remove()
    coder.b_dec.data = seen[0].flatten(0, 1).double().mean(0).float()
    (found,) = measure(model, [one], ids, all_metrics=True)
    assert found.coders[point]["explained_variance"] == pytest.approx(0, abs=1e-6)


def test_coders_measured_side_by_side_score_as_they_do_alone() -> None:
    model = tiny_causal_model("llama")
    ids = tokens(model)
    some = [
        random_coders(tiny_config("sae", exclude_first_tokens=1), ["layers.1"], 32),
        random_coders(tiny_config("sae", exclude_first_tokens=2, k=7), ["layers.1", "layers.3"], 32),
        random_coders(tiny_config("transcoder", max_norm_multiple=1.1, init_seeds=[1, 2]), ["layers.1.mlp"], 32),
        random_coders(tiny_config("sae", max_norm_multiple=1.1), ["layers.1.mlp"], 32),
        random_coders(tiny_config("sae", eval_end_to_end=False), ["layers.2"], 32),
    ]
    together = measure(model, some, ids, all_metrics=True)
    for one, found in zip(some, together, strict=True):
        (alone,) = measure(model, [one], ids, all_metrics=True)
        assert (found.coders, found.together) == (alone.coders, alone.together)
    assert "ce_loss_score" not in together[4].coders["layers.2"]
    transcoder, sae = (together[i].coders[name] for i, name in ((2, "layers.1.mlp/seed1"), (3, "layers.1.mlp")))
    assert transcoder["frac_tokens_excluded"] == 0 < sae["frac_tokens_excluded"] < 1
    assert transcoder["ce_loss_with_ablation"] != sae["ce_loss_with_ablation"], "each leaves out the outliers of its own input"


@pytest.mark.parametrize(("loss_fn", "metric"), [("fvu", "fvu"), ("ce", "ce_loss_with_sae"), ("kl", "kl_div_with_sae")])
def test_what_best_goes_by_is_the_same_in_a_save_and_in_an_evaluation(loss_fn: str, metric: str) -> None:
    model = tiny_causal_model("llama")
    for points in (["layers.1"], ["layers.1", "layers.2"]):
        one = random_coders(tiny_config("sae", loss_fn=loss_fn, init_seeds=[1, 2]), points, 32)
        quick, full = (measure(model, [one], tokens(model), all_metrics=kind)[0].loss(loss_fn) for kind in (False, True))
        assert quick == full
        result = measure(model, [one], tokens(model), all_metrics=True)[0]
        for name in one.coders:
            scope = result.coders[name]
            if loss_fn != "fvu" and len(points) > 1:
                scope = result.together[name.partition("/")[2]]
            assert full[name] == scope[metric]


def test_without_a_token_that_counts_metrics_are_nan_and_null_in_the_file(tmp_path) -> None:
    model = tiny_causal_model("llama")
    one = random_coders(tiny_config("sae", exclude_tokens=list(range(VOCABULARY))), ["layers.1"], 32)
    (found,) = measure(model, [one], tokens(model), all_metrics=True)
    assert math.isnan(found.coders["layers.1"]["fvu"])
    assert math.isnan(found.coders["layers.1"]["ce_loss_score"])
    eval_file.write(tmp_path, found.evaluation(one))
    assert '"fvu": null' in (tmp_path / "eval.json").read_text()
    assert math.isnan(eval_file.read(tmp_path).coders[0].metrics["fvu"])


def test_a_model_without_a_head_gets_the_coders_own_metrics() -> None:
    model = tiny_model("llama")
    (found,) = measure(model, [random_coders(tiny_config("sae"), ["layers.1"], 32)], tokens(model), all_metrics=True)
    assert "fvu" in found.coders["layers.1"]
    assert "ce_loss_score" not in found.coders["layers.1"]


def test_what_is_read_back_is_what_was_written(tmp_path) -> None:
    model = tiny_causal_model("llama")
    one = random_coders(tiny_config("sae", init_seeds=[1, 2]), ["layers.1", "layers.2"], 32)
    measured: EvalResult = measure(model, [one], tokens(model), all_metrics=True)[0]
    evaluation = measured.evaluation(one, 12, 3456)
    eval_file.write(tmp_path, evaluation)
    assert eval_file.read(tmp_path) == evaluation
    for name, density in eval_file.read_densities(tmp_path).items():
        np.testing.assert_array_equal(density, measured.densities[name])
    assert [(c.coder, c.hookpoint, c.seed) for c in evaluation.coders][1] == ("layers.1/seed2", "layers.1", 2)
    assert [t.coders for t in evaluation.together] == [[f"layers.{i}/seed{s}" for i in (1, 2)] for s in (1, 2)]
