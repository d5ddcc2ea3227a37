"""Coders with thresholds, and Matryoshka coders, in the files of other programs and loaded again."""

import json
import logging
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder

from helpers.random_runs import LATENTS, D, write_random_run
from helpers.sweeps import SHORT
from sae_transcoder.api import load_coders, load_config, train
from sae_transcoder.coder.finetune import start_coders
from sae_transcoder.coder.trained_coder import TrainedCoder
from sae_transcoder.config import ConfigError
from sae_transcoder.exports.write import export

SAELENS_KINDS = {
    "jumprelu": ["activation=jumprelu", "layers=[2]"],
    "jumprelu_transcoder": ["activation=batchtopk", "model_type=transcoder", "layers=[2]"],
    "jumprelu_skip_transcoder": ["activation=jumprelu", "model_type=transcoder", "layers=[2]", "skip_connection=true"],
    "an SAE with a skip connection": ["activation=batchtopk", "layers=[2]", "skip_connection=true"],
}


def inputs(scale: float = 3) -> torch.Tensor:
    return scale * torch.randn(100, D, generator=torch.Generator().manual_seed(0))


def latents_of(coder: TrainedCoder, x: torch.Tensor) -> torch.Tensor:
    """[token, latent]"""
    acts, indices, _ = coder.encode(x)
    return torch.zeros(len(x), LATENTS).scatter(1, indices, acts)


@pytest.mark.parametrize("kind", SAELENS_KINDS)
def test_saelens_files_hold_the_same_jumprelu(tmp_path: Path, kind: str) -> None:
    run, coders = write_random_run(tmp_path, *SAELENS_KINDS[kind])
    ((name, coder),) = coders.items()
    out = export(str(run), "sae_lens", tmp_path / "out") / name
    cfg, tensors = json.loads((out / "cfg.json").read_text()), load_file(out / "sae_weights.safetensors")
    skip = coder.cfg.skip_connection
    assert cfg["architecture"] == ("jumprelu_skip_transcoder" if skip else kind)
    assert cfg["apply_b_dec_to_input"] is (kind == "jumprelu")
    assert (cfg["d_in"], cfg["d_sae"], cfg.get("d_out")) == (D, LATENTS, None if kind == "jumprelu" else D)
    assert "k" not in cfg  # SAELens's JumpReLU has none
    assert (cfg["metadata"]["sae_transcoder_activation"], cfg["metadata"]["sae_transcoder_k"]) == (coder.trained_activation, 4)
    assert cfg["metadata"]["sae_transcoder_model_type"] == ("transcoder" if "transcoder" in kind else "sae")
    assert tensors["threshold"].shape == (LATENTS,)
    x = inputs()
    preacts = (x - tensors["b_dec"] if cfg["apply_b_dec_to_input"] else x) @ tensors["W_enc"] + tensors["b_enc"]
    latents = preacts.relu() * (preacts > tensors["threshold"])
    theirs = latents @ tensors["W_dec"] + tensors["b_dec"] + (x @ tensors["W_skip"].T if skip else 0)
    assert 10 < (latents > 0).sum(1).float().mean() < 200
    torch.testing.assert_close(latents, latents_of(coder, x), atol=2e-5, rtol=0)
    torch.testing.assert_close(theirs, coder(x).sae_out, atol=2e-5, rtol=0)


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_saelens_is_told_the_widths_of_nested_dictionaries(tmp_path: Path, activation: str) -> None:
    run, _ = write_random_run(tmp_path, f"activation={activation}", "layers=[2]", "matryoshka_widths=[128,512]")
    cfg = json.loads((export(str(run), "sae_lens", tmp_path / "out") / "layers.2" / "cfg.json").read_text())
    assert cfg["architecture"] == ("topk" if activation == "topk" else "jumprelu")
    assert cfg["metadata"]["sae_transcoder_matryoshka_widths"] == [128, 512]


@pytest.mark.parametrize("activation", ["batchtopk", "jumprelu"])
def test_a_transcoder_set_has_a_threshold_for_each_latent(tmp_path: Path, activation: str) -> None:
    run, coders = write_random_run(tmp_path, f"activation={activation}", "model_type=transcoder", "layers=null")
    out = export(str(run), "circuit_tracer", tmp_path / "set")
    described = yaml.safe_load((out / "config.yaml").read_text())
    assert described["activation"] == "jumprelu"
    assert "k" not in described  # it would have no meaning there
    for i in range(6):
        tensors, coder = load_file(out / f"layer_{i}.safetensors"), coders[f"layers.{i}.mlp"]
        assert sorted(tensors) == ["W_dec", "W_enc", "activation_function.threshold", "b_dec", "b_enc"]
        assert torch.equal(tensors["activation_function.threshold"], coder.threshold.expand(LATENTS))


def test_a_transcoder_set_of_groupmax_is_refused_with_the_activations_that_can_be_exported(tmp_path: Path) -> None:
    run, _ = write_random_run(tmp_path, "activation=groupmax", "model_type=transcoder", "layers=null")
    with pytest.raises(ConfigError, match=r"activation=groupmax: .*train with activation=topk, batchtopk or jumprelu"):
        export(str(run), "circuit_tracer", tmp_path / "set")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["activation=batchtopk", "matryoshka_widths=[128,512]"],
            "k = 4 on average over a batch, trained as nested dictionaries of 128, 512",
        ),
        (["activation=jumprelu"], "1 jumprelu sparse autoencoders, k = 4 as the target of the training"),
        (["activation=jumprelu", "jumprelu_loss=tanh"], "1 jumprelu sparse autoencoders, with the sparsity loss tanh"),
    ],
)
def test_the_card_says_how_latents_are_selected_and_the_coders_load_again(tmp_path: Path, settings: list[str], said: str) -> None:
    run, coders = write_random_run(tmp_path, *settings, "layers=[2]")
    out = export(str(run), "hub", tmp_path / "card")
    card = (out / "README.md").read_text()
    assert said in card
    assert "from sae_transcoder.api import load_coders" in card
    assert "keeps the 4 largest latents" in card
    assert "| coder | latents | k | FVU | L0 |" in card
    assert "| layers.2 | 512 | 4 | 0.2500 | 3.9375 |" in card
    loaded, x = load_coders(out), inputs()
    assert list(loaded) == ["layers.2"]
    assert torch.equal(loaded["layers.2"](x).sae_out, coders["layers.2"](x).sae_out)
    assert loaded["layers.2"].matryoshka_widths == coders["layers.2"].matryoshka_widths


def test_sparsify_itself_computes_top_k_from_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    # The method, since tests before this one may have set the levels of loggers.
    monkeypatch.setattr(logging.getLogger("simple_parsing.helpers.serialization.serializable"), "warning", told.append)
    run, coders = write_random_run(tmp_path, "activation=jumprelu", "layers=[2]")
    theirs, ours, x = SparseCoder.load_many(str(run / "coders"), local=True)["layers.2"], coders["layers.2"], inputs()
    assert "Dropping extra args {'trained_activation': 'jumprelu'}" in told
    acts = theirs.encode(x).top_acts
    assert acts.shape == (100, 4)
    preacts = torch.relu((x - ours.b_dec) @ ours.encoder.weight.T + ours.encoder.bias)
    torch.testing.assert_close(acts.sort(descending=True).values, preacts.topk(4).values)


@pytest.mark.parametrize("activation", ["batchtopk", "jumprelu"])
def test_what_a_run_stores_is_loaded_by_sparsify_as_top_k(cache: Path, tmp_path: Path, activation: str) -> None:
    settings = ["k=4", "max_steps=2", f"save_dir={tmp_path}", f"cache_dir={cache}", "normalize_activations=mean_norm"]
    run = train(load_config(*SHORT, *settings, f"activation={activation}"))
    stored = json.loads((run.directory / "coders" / "layers.2" / "cfg.json").read_text())
    assert (stored["activation"], stored["trained_activation"]) == ("topk", activation)
    theirs = SparseCoder.load_many(str(run.directory / "coders"), local=True)["layers.2"]
    assert theirs.encode(inputs()).top_acts.shape == (100, 4)


def test_coders_that_are_not_there_or_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        load_coders(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="holds no coders"):
        load_coders(tmp_path)
    run, _ = write_random_run(tmp_path, "activation=jumprelu", "layers=[2]")
    thresholds = run / "coders" / "layers.2" / "threshold.safetensors"
    save_file({"threshold": torch.zeros(3)}, thresholds)
    with pytest.raises(ConfigError, match=r"has threshold of shape \[3\], not \[512\]\); load another copy"):
        load_coders(run)
    thresholds.unlink()
    with pytest.raises(ConfigError, match=r"lacks threshold.safetensors, and is a jumprelu coder\); export another copy"):
        export(str(run), "sae_lens", tmp_path / "out")


def test_training_may_start_from_coders_with_thresholds(tmp_path: Path) -> None:
    run, _ = write_random_run(tmp_path, "activation=batchtopk", "layers=[2]")
    cfg = load_config("experiment=demo", f"finetune={run}")
    assert start_coders(cfg, ["layers.2"], {"layers.2": D}, {"layers.2": LATENTS}) == {"layers.2": run / "coders" / "layers.2"}
