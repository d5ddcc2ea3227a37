"""Training that starts from coders that were trained before."""

import shutil
from pathlib import Path

import pytest
import torch
from sparsify import SparseCoder

from helpers.short_runs import short, weights
from sae_transcoder.config import ConfigError, run_dir
from sae_transcoder.training import engine

pytestmark = pytest.mark.device


@pytest.fixture(scope="module")
def trained(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run with SAEs on two layers."""
    cfg = short(cache, tmp_path_factory.mktemp("base"), "layers=[1,2]", "run_name=base", "eval_end_to_end=false")
    engine.train([cfg])
    return run_dir(cfg)


def test_a_run_directory_and_a_folder_of_sparsify_coders_start_the_same_run(cache: Path, trained: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    for coder in filter(Path.is_dir, (trained / "coders").iterdir()):
        SparseCoder.load_from_disk(coder).save_to_disk(plain / coder.name)
    ends = []
    for start in (trained, plain):
        cfg = short(cache, tmp_path / "runs", "layers=[1,2]", f"finetune={start}", "k=6", "eval_end_to_end=false")
        (result,) = engine.train([cfg])
        ends.append(weights(result.directory / "coders"))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_nothing_is_initialised_anew(cache: Path, trained: Path, tmp_path: Path) -> None:
    cfg = short(cache, tmp_path, "layers=[1,2]", f"finetune={trained}", "lr=1e-30", "max_steps=2", "eval_end_to_end=false")
    (result,) = engine.train([cfg])
    before = weights(trained / "coders")
    for name, value in weights(result.directory / "coders").items():
        torch.testing.assert_close(value, before[name], atol=1e-6, rtol=0)
    fresh = short(cache, tmp_path, "layers=[1,2]", "max_steps=2", "lr=1e-30", "eval_end_to_end=false")
    (from_seed,) = engine.train([fresh])
    assert result.evaluation.mean()["fvu"] < from_seed.evaluation.mean()["fvu"]


def test_one_layer_of_several_may_be_taken(cache: Path, trained: Path, tmp_path: Path) -> None:
    engine.train([short(cache, tmp_path, "layers=[2]", f"finetune={trained}")])


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["layers=[3]"], ["no coder for layers.3", "it holds: layers.1, layers.2"]),
        (["layers=[1]", "expansion_factor=3"], ["encoder.weight of shape [512, 256]", "[768, 256]"]),
        (["layers=[1]", "skip_connection=true"], ["lacks W_skip of shape [256, 256]"]),
        (["layers=[1]", "init_seeds=[1,2]"], ["no coder for layers.1/seed1"]),
        (["layers=null", "hookpoints=[layers.1]", "model_type=transcoder"], ["is an SAE", "model_type=transcoder"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_coders_that_do_not_fit_are_refused(cache, trained: Path, tmp_path: Path, overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        engine.train([short(cache, tmp_path, f"finetune={trained}", *overrides)])
    for part in [f"finetune={trained}", *parts]:
        assert part in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_path_that_is_not_there_or_damaged_is_refused(cache: Path, trained: Path, tmp_path: Path) -> None:
    for name, part in [("/nowhere/run", "no such folder"), ("nobody/nothing", "neither a folder nor to be had from the hub")]:
        with pytest.raises(ConfigError, match=part):
            engine.train([short(cache, tmp_path, f"finetune={name}")])
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    (copy / "coders" / "layers.2" / "sae.safetensors").write_bytes(b"torn")
    with pytest.raises(ConfigError, match="cannot be read"):
        engine.train([short(cache, tmp_path, f"finetune={copy}")])
