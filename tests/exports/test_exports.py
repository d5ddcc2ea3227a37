"""Coders in the files of other programs: whole, equal, or refused with the reason."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from sparsify import SparseCoder

from helpers import forked
from helpers.sweeps import SHORT
from sae_transcoder.api import Run, load_config, train
from sae_transcoder.config import ConfigError
from sae_transcoder.export import parse_settings
from sae_transcoder.exports import sae_lens
from sae_transcoder.exports.sae_lens import begins_with_bos
from sae_transcoder.exports.source import read_source
from sae_transcoder.exports.write import export
from sae_transcoder.run_store import status
from sae_transcoder.run_store.data_origin import DataOrigin
from sae_transcoder.run_store.status import State


@pytest.fixture(scope="module")
def trained(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A tiny SAE, a transcoder on one layer and on every layer, and coders that not every target can express."""
    folder = tmp_path_factory.mktemp("runs")
    usual = [*SHORT, "k=4", "max_steps=4", "eval_end_to_end=false", f"save_dir={folder}", f"cache_dir={cache}"]
    kinds = {
        "sae": ["layers=[1,2]"],
        "transcoder": ["model_type=transcoder", "prepend_bos=true"],
        "every_layer": ["model_type=transcoder", "layers=null", "skip_connection=true"],
        "seeds": ["model_type=transcoder", "layers=null", "init_seeds=[0,1]"],
        "groupmax": ["architecture=groupmax"],
        "skip": ["skip_connection=true"],
        "attention": ["model_type=transcoder", "layers=null", "site=attention"],
    }
    return {name: train(load_config(*usual, *settings, f"run_name={name}")) for name, settings in kinds.items()}


def forward_of(weights: dict[str, torch.Tensor], x: torch.Tensor, k: int, *, shifted: bool) -> torch.Tensor:
    """A top-k coder written out, with W_enc [d, latent]."""
    values, indices = (((x - weights["b_dec"]) if shifted else x) @ weights["W_enc"] + weights["b_enc"]).relu().topk(k)
    latents = torch.zeros(len(x), weights["W_enc"].shape[1]).scatter(1, indices, values)
    return latents @ weights["W_dec"] + weights["b_dec"]


@pytest.mark.parametrize(("name", "coder", "shifted"), [("sae", "layers.2", True), ("transcoder", "layers.2.mlp", False)])
def test_saelens_files_hold_the_same_function(
    trained: dict[str, Run], tmp_path: Path, name: str, coder: str, shifted: bool
) -> None:
    out = export(str(trained[name].directory), "sae_lens", tmp_path / "out")
    cfg = json.loads((out / coder / "cfg.json").read_text())
    assert cfg["metadata"]["prepend_bos"] is (name == "transcoder")
    assert (cfg["architecture"], cfg["k"], cfg["d_in"], cfg["d_sae"], cfg["apply_b_dec_to_input"]) == ("topk", 4, 256, 512, shifted)
    x = torch.randn(50, 256)
    theirs = forward_of(load_file(out / coder / "sae_weights.safetensors"), x, 4, shifted=shifted)
    torch.testing.assert_close(theirs, trained[name].coders[coder](x).sae_out, atol=1e-5, rtol=1e-5)


def test_saelens_is_told_where_in_transformerlens_a_coder_reads_and_writes(trained: dict[str, Run], tmp_path: Path) -> None:
    hooks = {}
    for name in ("sae", "transcoder"):
        out = export(str(trained[name].directory), "sae_lens", tmp_path / name)
        for path in out.glob("*/cfg.json"):
            metadata = json.loads(path.read_text())["metadata"]
            assert metadata["context_size"] == 32
            hooks[path.parent.name] = metadata["hook_name"], metadata.get("hook_name_out")
    assert hooks == {
        "layers.1": ("blocks.1.hook_resid_post", None),
        "layers.2": ("blocks.2.hook_resid_post", None),
        "layers.2.mlp": ("blocks.2.mlp.hook_in", "blocks.2.hook_mlp_out"),
    }


def test_saelens_gets_no_hook_where_there_is_none_and_the_command_says_so(trained: dict[str, Run], tmp_path: Path) -> None:
    done = forked.run(
        ["-m", "sae_transcoder.export", str(trained["attention"].directory), "to=sae_lens", f"out={tmp_path / 'out'}"]
    )
    assert done.returncode == 0, done.stderr
    metadata = json.loads((tmp_path / "out" / "layers.0.self_attn" / "cfg.json").read_text())["metadata"]
    assert "hook_name" not in metadata
    assert "layers.5.self_attn: metadata.hook_name is left out: TransformerLens has no name" in done.stderr


def test_saelens_is_told_of_one_begin_token_and_the_command_of_others(
    trained: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(sae_lens.log, "warning", lambda message, *values: said.append(message % values))
    source = read_source(str(trained["transcoder"].directory))
    assert source.begin == [4095]
    assert begins_with_bos(source)
    assert said == []
    assert not begins_with_bos(replace(source, origin=DataOrigin(begin=(4095, 17))))
    assert "each sequence began with 4095, 17" in said[0]


def test_a_transcoder_set_has_a_file_for_every_layer(trained: dict[str, Run], tmp_path: Path) -> None:
    out = export(str(trained["every_layer"].directory), "circuit_tracer", tmp_path / "set")
    described = yaml.safe_load((out / "config.yaml").read_text())
    assert sorted(p.name for p in out.iterdir()) == ["config.yaml", *(f"layer_{i}.safetensors" for i in range(6))]
    assert (described["activation"], described["k"], described["model_name"]) == ("topk", 4, "demo")
    for i in range(6):
        weights, coder = load_file(out / f"layer_{i}.safetensors"), trained["every_layer"].coders[f"layers.{i}.mlp"]
        assert torch.equal(weights["W_enc"], coder.encoder.weight)
        assert torch.equal(weights["W_skip"], coder.W_skip)


def test_the_hub_layout_is_loaded_by_sparsify_and_described(trained: dict[str, Run], tmp_path: Path) -> None:
    out = export(str(trained["sae"].directory), "hub", tmp_path / "card")
    loaded = SparseCoder.load_many(str(out), local=True)
    assert list(loaded) == ["layers.1", "layers.2"]
    assert "in sequences of 32 tokens that have no begin token" in (out / "README.md").read_text()
    x = torch.randn(5, 256)
    assert torch.equal(loaded["layers.1"](x).sae_out, trained["sae"].coders["layers.1"](x).sae_out)
    card = (out / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "sparsify"
    fvu = trained["sae"].evaluation.coders[0].metrics["fvu"]
    assert f"{fvu:.4f}" in card
    assert yaml.safe_load((out / "training_config.yaml").read_text())["k"] == 4
    assert json.loads((out / "eval.json").read_text())


@pytest.mark.parametrize(
    ("name", "to", "parts"),
    [
        ("groupmax", "sae_lens", ["activation=groupmax", "activation=topk, batchtopk or jumprelu"]),
        ("skip", "sae_lens", ["skip_connection=True with activation=topk", "activation=batchtopk or jumprelu, or export to hub"]),
        ("sae", "circuit_tracer", ["layers.1", "an SAE", "model_type=transcoder"]),
        ("transcoder", "circuit_tracer", ["no transcoder for layers 0, 1, 3, 4, 5 of 6"]),
        ("seeds", "circuit_tracer", ["several seeds"]),
        ("attention", "circuit_tracer", ["layers.0.self_attn", "site=mlp"]),
        ("sae", "saelens", ["to=saelens", "did you mean to=sae_lens"]),
        ("sae", "onnx", ["to=onnx", "choose one of"]),
        ("sae", "sae_bench", ["to=sae_bench", "to=sae_lens", "examples/sae_bench_core.py"]),
        ("sae", "delphi", ["to=delphi", "coders/ as they are"]),
        ("sae", "neuronpedia", ["latents/coders", "run sae-latents"]),
    ],
)
def test_what_a_target_cannot_express_is_refused_and_nothing_written(
    trained: dict[str, Run], tmp_path: Path, name: str, to: str, parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        export(str(trained[name].directory), to, tmp_path / "out")
    assert all(part in str(refused.value) for part in parts), str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_and_runs_that_are_not_done_are_refused(trained: dict[str, Run], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists"):
        export(str(trained["sae"].directory), "hub", tmp_path)
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ConfigError, match="give the directory of a run"):
            export(str(path), "hub", tmp_path / "out")
    directory = trained["skip"].directory
    run_status = status.read(directory)
    assert run_status is not None
    run_status.state = State.interrupted
    status.write(directory, run_status)
    try:
        with pytest.raises(ConfigError, match="interrupted at step 4 of 4"):
            export(str(directory), "hub", tmp_path / "out")
    finally:
        run_status.state = State.done
        status.write(directory, run_status)


def test_the_command_tells_what_is_wrong(tmp_path: Path) -> None:
    for arguments, part in [
        (["x", "out=y"], "to is missing"),
        (["x", "to=hub"], "out is missing"),
        (["x", "too=hub"], "too=hub: not known"),
    ]:
        done = forked.run(["-m", "sae_transcoder.export", *arguments], cwd=tmp_path)
        assert done.returncode == 1
        assert part in done.stderr
    assert parse_settings(["to=hub", "out=a=b"]) == {"to": "hub", "out": "a=b"}
