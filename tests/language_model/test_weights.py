"""Weights that do not fit the model: refused before the run, with the names of what is missing and of what nothing takes."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.tiny_models import tiny_config
from sae_transcoder.config import Config, ConfigError
from sae_transcoder.language_model import loading, model_checks

CPU = torch.device("cpu")
Weights = dict[str, torch.Tensor]


def a_model(tiny_folder: dict[str, Path], tmp_path: Path, family: str = "llama", **settings: object) -> Path:
    """A copy of a tiny model's folder, its config changed."""
    folder = Path(shutil.copytree(tiny_folder[family], tmp_path / "model"))
    described = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(described))
    return folder


def change(folder: Path, changed: Callable[[Weights], Weights]) -> None:
    """Replaces the weights."""
    save_file(changed(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})


def config(folder: Path, **settings: object) -> Config:
    return tiny_config("sae", model_name=str(folder), eval_end_to_end=False, hookpoints=["layers.1"], **settings)


def refused(folder: Path, layers: int | None = None) -> str:
    """The one message with which both the check of headers and the loading itself refuse the weights."""
    (fault,) = model_checks.stored_weight_faults(config(folder), layers)
    with pytest.raises(ConfigError, match=re.escape(fault)):
        loading.load(config(folder), CPU, layers)
    return fault


@pytest.mark.parametrize(("prefix", "cause"), [("_orig_mod.", "torch.compile"), ("module.", "DataParallel")])
def test_a_known_prefix_of_all_names_is_told_as_the_cause(tiny_folder: dict, tmp_path: Path, prefix: str, cause: str) -> None:
    folder = a_model(tiny_folder, tmp_path)
    change(folder, lambda weights: {prefix + name: value for name, value in weights.items()})
    fault = refused(folder)
    assert "its weights lack embed_tokens.weight, layers.0.input_layernorm.weight" in fault
    assert f"hold {prefix}embed_tokens.weight" in fault
    assert cause in fault


def test_a_config_with_a_layer_more_than_the_file_is_refused_unless_the_run_ends_below_it(
    tiny_folder: dict, tmp_path: Path
) -> None:
    folder = a_model(tiny_folder, tmp_path, num_hidden_layers=5)
    assert "its weights lack layers.4.input_layernorm.weight" in refused(folder)
    assert model_checks.stored_weight_faults(config(folder), 4) == []
    assert len(loading.load(config(folder), CPU, 4).layers) == 4


def test_a_config_with_a_layer_less_than_the_file_is_refused_and_layers_left_out_on_purpose_are_not(
    tiny_folder: dict, tmp_path: Path
) -> None:
    folder = a_model(tiny_folder, tmp_path, num_hidden_layers=3)
    assert "its weights hold layers.3.input_layernorm.weight" in refused(folder)
    assert model_checks.stored_weight_faults(config(folder), 2) == []


def test_a_tensor_that_is_missing_in_a_layer_or_has_no_place_there_is_refused(tiny_folder: dict, tmp_path: Path) -> None:
    folder = a_model(tiny_folder, tmp_path)
    change(folder, lambda weights: {name: value for name, value in weights.items() if name != "layers.2.mlp.up_proj.weight"})
    assert "its weights lack layers.2.mlp.up_proj.weight; give the config" in refused(folder)
    shutil.rmtree(folder)
    folder = a_model(tiny_folder, tmp_path)
    change(folder, lambda weights: weights | {"layers.2.self_attn.q_norm.weight": torch.ones(8)})
    assert "its weights hold layers.2.self_attn.q_norm.weight, which the model has no place for" in refused(folder)


def test_shapes_that_are_not_the_configs_are_refused(tiny_folder: dict, tmp_path: Path) -> None:
    folder = a_model(tiny_folder, tmp_path, intermediate_size=64)
    assert "have other shapes than the config says for layers.0.mlp.down_proj.weight" in refused(folder)


@pytest.mark.parametrize("damage", ["cut", "pointer", "empty", "gone"])
def test_a_damaged_file_is_refused_from_its_header(tiny_folder: dict, tmp_path: Path, damage: str) -> None:
    folder = a_model(tiny_folder, tmp_path)
    file = folder / "model.safetensors"
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
        file.write_bytes({"cut": content[: len(content) // 2], "pointer": pointer, "empty": b""}[damage])
    for check in (lambda: model_checks.stored_weight_faults(config(folder)), lambda: loading.load(config(folder), CPU)):
        with pytest.raises(ConfigError, match=f"model_name={folder}: its weights cannot be loaded"):
            check()


def test_what_a_run_can_do_without_is_no_fault(tiny_folder: dict, tmp_path: Path) -> None:
    folder = a_model(tiny_folder, tmp_path)
    change(
        folder,
        lambda weights: weights | {"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "classifier.weight": torch.ones(2)},
    )
    assert model_checks.stored_weight_faults(config(folder)) == []
    bert = a_model(tiny_folder, tmp_path / "bert", "bert")
    change(bert, lambda weights: {name: value for name, value in weights.items() if "pooler" not in name})
    assert model_checks.stored_weight_faults(config(bert)) == []
    assert loading.load(config(bert), CPU).encoder is not None


def test_integers_without_a_config_that_says_what_they_stand_for_are_refused(tiny_folder: dict, tmp_path: Path) -> None:
    folder = a_model(tiny_folder, tmp_path)
    change(
        folder,
        lambda weights: weights | {"layers.1.mlp.up_proj.weight": (weights["layers.1.mlp.up_proj.weight"] * 100).to(torch.int8)},
    )
    (fault,) = model_checks.stored_weight_faults(config(folder))
    assert "its weights are integers (layers.1.mlp.up_proj.weight)" in fault


def test_an_adapter_beside_a_model_is_refused(tiny_folder: dict, tmp_path: Path) -> None:
    folder = a_model(tiny_folder, tmp_path)
    (folder / "adapter_config.json").write_text("{}")
    (fault,) = model_checks.stored_weight_faults(config(folder))
    assert "an adapter lies beside the model (adapter_config.json)" in fault
