"""Held-out metrics against an independent computation, token by token, and against coders whose scores are known."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from helpers.device import DEVICE
from helpers.independent_metrics import Independent
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


def assert_close(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-5, nan_ok=True), name


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
    assert metrics["ce_loss_with_sae"] == pytest.approx(metrics["ce_loss_without_sae"], abs=1e-5)
    assert metrics["kl_div_score"] == pytest.approx(1, abs=1e-5)
    assert metrics["kl_div_score_mean_ablation"] == pytest.approx(1, abs=1e-5)
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
    assert found.coders["h.1.attn.c_proj"]["kl_div_score"] == pytest.approx(1, abs=1e-5)
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
    metrics = found.coders[point]
    assert metrics["explained_variance"] == pytest.approx(0, abs=1e-6)
    for loss in ("ce_loss", "kl_div"):
        assert metrics[f"{loss}_with_sae"] == pytest.approx(metrics[f"{loss}_with_mean_ablation"], rel=1e-5, abs=0)
        assert metrics[f"{loss}_with_ablation"] != pytest.approx(metrics[f"{loss}_with_mean_ablation"], rel=2e-5, abs=0)
    assert metrics["kl_div_score_mean_ablation"] == pytest.approx(0, abs=1e-5)


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
        assert repr((found.coders, found.together)) == repr((alone.coders, alone.together)), "NaN among them"
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
