"""Stored coders that are not what their cfg.json says are named, wherever they are read: to be measured, exported or trained further."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.short_runs import short
from sae_transcoder import api, evaluate
from sae_transcoder.coder.stored_coders import coder_faults
from sae_transcoder.config import ConfigError
from sae_transcoder.exports.write import export
from sae_transcoder.training import engine

Weights = dict[str, torch.Tensor]
# {what is wrong: what changes the tensors}
CHANGES: dict[str, Callable[[Weights], Weights]] = {
    "lacks W_dec of shape [512, 256]": lambda weights: {name: value for name, value in weights.items() if name != "W_dec"},
    "has a tensor W_extra that such a coder does not have": lambda weights: weights | {"W_extra": torch.zeros(2)},
    "has b_dec of shape [128], not [256]": lambda weights: weights | {"b_dec": torch.zeros(128)},
    "has b_dec in I64, no floating-point numbers": lambda weights: weights | {"b_dec": torch.zeros(256, dtype=torch.int64)},
}


@pytest.fixture(scope="module")
def trained(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's directory."""
    return api.train(short(cache, tmp_path_factory.mktemp("run"), "max_steps=1", "eval_end_to_end=false")).directory


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.mark.parametrize(("fault", "change"), CHANGES.items(), ids=lambda value: value if isinstance(value, str) else "")
def test_tensors_that_are_not_those_of_the_settings_are_refused_by_every_reader(
    run: Path, cache: Path, tmp_path: Path, fault: str, change: Callable[[Weights], Weights]
) -> None:
    folder = run / "coders" / "layers.2"
    assert coder_faults(folder) == []
    save_file(change(load_file(folder / "sae.safetensors")), folder / "sae.safetensors")
    assert coder_faults(folder) == [f"{folder}: cannot be read ({fault})"]
    for read in (
        lambda: evaluate.evaluate([str(run)], ["eval_samples=2"], tmp_path / "eval"),
        lambda: export(str(run), "sae_lens", tmp_path / "out"),
        lambda: engine.train([short(cache, tmp_path / "new", f"finetune={run}")]),
    ):
        with pytest.raises(ConfigError) as refused:
            read()
        assert fault in str(refused.value)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{}", "cfg.json: cannot be read (lacks d_in, k, expansion_factor); take the coder from another copy"),
        ("", "cfg.json: cannot be read (empty)"),
        ("null", "cfg.json: cannot be read (holds NoneType, not an object)"),
        (json.dumps({"d_in": 256}), "lacks k, expansion_factor"),
        (json.dumps({"d_in": 256, "k": "8", "num_latents": 512}), "k is '8'"),
    ],
)
def test_a_cfg_json_that_says_too_little_is_named(run: Path, text: str, fault: str) -> None:
    (run / "coders" / "layers.2" / "cfg.json").write_text(text)
    (found,) = coder_faults(run / "coders" / "layers.2")
    assert fault in found


def test_a_coder_in_half_precision_is_sound(run: Path) -> None:
    folder = run / "coders" / "layers.2"
    save_file({name: value.bfloat16() for name, value in load_file(folder / "sae.safetensors").items()}, folder / "sae.safetensors")
    assert coder_faults(folder) == []


# {what is wrong: the threshold.safetensors of a coder with 512 latents, None for none}
THRESHOLD_FILES: dict[str, Weights | bytes | None] = {
    "lacks threshold.safetensors, and is a jumprelu coder": None,
    "Error while deserializing header": b"torn",
    "threshold.safetensors has threshold of shape [3], not [512]": {"threshold": torch.ones(3)},
    "threshold.safetensors lacks threshold of shape [512]": {"thresholds": torch.ones(512)},
    "threshold.safetensors has thresholds that are negative or not finite": {
        "threshold": torch.ones(512).index_fill(0, torch.tensor(7), torch.nan)
    },
}


@pytest.mark.parametrize(("fault", "content"), THRESHOLD_FILES.items(), ids=lambda value: value if isinstance(value, str) else "")
def test_damaged_thresholds_are_refused_by_every_reader(
    run: Path, cache: Path, tmp_path: Path, fault: str, content: Weights | bytes | None
) -> None:
    folder = run / "coders" / "layers.2"
    settings = folder / "cfg.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"trained_activation": "jumprelu"}))
    if isinstance(content, bytes):
        (folder / "threshold.safetensors").write_bytes(content)
    elif content is not None:
        save_file(content, folder / "threshold.safetensors")
    for read in (
        lambda: api.load_coders(run),
        lambda: export(str(run), "sae_lens", tmp_path / "out"),
        lambda: engine.train([short(cache, tmp_path / "new", f"finetune={run}", "activation=jumprelu")]),
    ):
        with pytest.raises(ConfigError, match=r"another copy") as refused:
            read()
        assert fault in str(refused.value)
    assert not (tmp_path / "new").exists()


def test_an_activation_that_no_training_has_is_refused(run: Path) -> None:
    settings = run / "coders" / "layers.2" / "cfg.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"trained_activation": "relu"}))
    with pytest.raises(ConfigError, match="trained_activation is 'relu', not batchtopk or jumprelu"):
        api.load_coders(run)
