"""The language model's weights in 8 and 4 bits, by the real bitsandbytes, which computes on GPUs and on CPUs."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from helpers.command_line import composed
from helpers.device import DEVICE, ON_DEVICE
from helpers.sweeps import SHORT
from sae_transcoder.api import load_config, train
from sae_transcoder.config import ConfigError
from sae_transcoder.language_model import forward, loading, model_checks
from sae_transcoder.language_model.loading import DEMO
from sae_transcoder.preflight.plan import make_plan

NOT_INSTALLED = find_spec("bitsandbytes") is None  # to import it takes seconds, in every process that collects this file
pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(NOT_INSTALLED, reason="needs bitsandbytes: pip install -e '.[quantization]'"),
]
DEMO_RUN = ["experiment=demo", *ON_DEVICE]


def held(model: torch.nn.Module) -> int:
    """Bytes of a model's weights, and of the scales beside quantized ones."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    states = [getattr(p, "quant_state", None) for p in model.parameters()]
    return weights + sum(state.absmax.numel() * state.absmax.element_size() for state in states if state is not None)


@pytest.mark.parametrize(("quantization", "least"), [("int8", 0.999), ("nf4", 0.9)])
def test_weights_take_what_the_estimate_says_and_activations_stay_near(quantization: str, least: float) -> None:
    plain, few = (composed(*DEMO_RUN, *own) for own in ([], [f"quantization={quantization}"]))
    model = loading.load(few, DEVICE)
    assert held(model) == loading.weight_bytes(few, loading.outline(few), torch.float32)
    tokens = torch.arange(64, device=DEVICE).view(2, 32)
    theirs = forward.capture(model, ["layers.4"], tokens)["layers.4"].output
    exact = forward.capture(loading.load(plain, DEVICE), ["layers.4"], tokens)["layers.4"].output
    assert theirs.dtype == torch.float32
    assert not torch.equal(theirs, exact)
    assert torch.cosine_similarity(theirs, exact, dim=-1)[:, 1:].min() > least


def test_a_head_of_its_own_counts_where_it_is_loaded(tmp_path: Path) -> None:
    def weights(*settings: str) -> int:
        cfg = composed("experiment=demo", *settings)
        return loading.weight_bytes(cfg, loading.outline(cfg), torch.float32)

    untied = tmp_path / "untied"
    shutil.copytree(DEMO, untied)
    described = json.loads((untied / "config.json").read_text()) | {"tie_word_embeddings": False}
    (untied / "config.json").write_text(json.dumps(described))
    assert weights() == weights("eval_end_to_end=false") == weights(f"model_name={untied}", "eval_end_to_end=false")
    assert weights(f"model_name={untied}") - weights() == 4096 * 256 * 4


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["int8", "nf4"])
@pytest.mark.parametrize("loss", [["eval_end_to_end=false"], ["loss_fn=kl"]])
def test_runs_train_on_it_with_its_first_layers_and_through_the_whole(quantization: str, loss: list[str], tmp_path: Path) -> None:
    settings = [*SHORT, *loss, "k=4", f"quantization={quantization}", f"save_dir={tmp_path}", f"cache_dir={tmp_path}/cache"]
    run = train(load_config(*settings))
    first, *_, last = [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
    measure = next(name for name in first if name.startswith(run.config.loss_fn))
    assert last[measure] < first[measure], (first, last)


def test_without_bitsandbytes_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_checks, "find_spec", lambda name: None if name == "bitsandbytes" else name)
    with pytest.raises(ConfigError, match=r"quantization=int8: needs bitsandbytes; run pip install .*\[quantization\]"):
        make_plan(composed("experiment=demo", "quantization=int8"))


def test_weights_that_are_quantized_already_are_not_again(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}})
    )
    with pytest.raises(ConfigError, match=r"quantization=nf4: the weights of .* are quantized already"):
        make_plan(composed("experiment=demo", f"model_name={tmp_path}/model", "quantization=nf4"))


@pytest.mark.slow
def test_a_checkpoint_of_quantized_weights_is_estimated_and_trains_as_it_is(tmp_path: Path) -> None:
    few = composed(*DEMO_RUN, "quantization=nf4")
    loading.load(few, DEVICE).save_pretrained(tmp_path / "model")
    loading.tokenizer(few).save_pretrained(tmp_path / "model")
    stored = composed(*DEMO_RUN, f"model_name={tmp_path}/model")
    assert loading.weight_bytes(stored, loading.outline(stored), torch.float32) == loading.weight_bytes(
        few, loading.outline(few), torch.float32
    )
    usual = [*SHORT, "k=4", f"save_dir={tmp_path}", f"cache_dir={tmp_path}/cache"]
    ours, theirs = (train(load_config(*usual, own)) for own in (f"model_name={tmp_path}/model", "quantization=nf4"))
    assert ours.evaluation.mean()["fvu"] == pytest.approx(theirs.evaluation.mean()["fvu"], rel=1e-4)
