"""Exported coders in the programs that they are exported to, in environments that benchmarks/peers/environments.py makes (pytest -m peers)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers import ROOT
from helpers.peers import run_in
from helpers.random_runs import LATENTS, D, write_random_run
from helpers.runs_with_latents import add_latents
from helpers.sweeps import SHORT
from sae_transcoder.api import Run, load_config, train
from sae_transcoder.exports.write import export
from sae_transcoder.language_model import forward, loading

pytestmark = pytest.mark.peers

TOKENS = [4095, *range(100, 131)]  # the token that begins a sequence, and others


def trained(folder: Path, *settings: str) -> Run:
    return train(load_config(*SHORT, "k=4", f"save_dir={folder}", f"cache_dir={folder}/cache", *settings))


LOAD_IN_SAELENS = """
import json, sys, torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sae_lens import SAE
coder = SAE.load_from_disk(sys.argv[1], device="cpu")
x = load_file(sys.argv[2])["x"]
with torch.no_grad():
    save_file({"out": coder(x).contiguous(), "latents": coder.encode(x).contiguous()}, sys.argv[3])
print(json.dumps(coder.cfg.metadata.to_dict()))
"""


@pytest.mark.parametrize(
    ("settings", "coder"), [(["layers=[2]"], "layers.2"), (["model_type=transcoder", "layers=[2]"], "layers.2.mlp")]
)
def test_saelens_reconstructs_what_the_coder_does(tmp_path: Path, settings: list[str], coder: str) -> None:
    run = trained(tmp_path, *settings)
    out = export(str(run.directory), "sae_lens", tmp_path / "out")
    x = 3 * torch.randn(200, 256, generator=torch.Generator().manual_seed(0))
    save_file({"x": x}, tmp_path / "x.safetensors")
    done = run_in("saelens", "-c", LOAD_IN_SAELENS, out / coder, tmp_path / "x.safetensors", tmp_path / "theirs.safetensors")
    assert done.returncode == 0, done.stderr
    read, written = json.loads(done.stdout.splitlines()[-1]), json.loads((out / coder / "cfg.json").read_text())["metadata"]
    assert {name: read.get(name) for name in written} == written
    theirs, ours = load_file(tmp_path / "theirs.safetensors"), run.coders[coder](x)
    torch.testing.assert_close(theirs["out"], ours.sae_out, atol=1e-5, rtol=0)
    latents = torch.zeros(200, 512).scatter(1, ours.latent_indices, ours.latent_acts)
    torch.testing.assert_close(theirs["latents"], latents, atol=1e-5, rtol=0)


LOAD_MANY_IN_SAELENS = """
import sys, torch
from pathlib import Path
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sae_lens import SAE
x = load_file(sys.argv[1])["x"]
for folder in map(Path, sys.argv[2:]):
    coder = SAE.load_from_disk(folder, device="cpu")
    with torch.no_grad():
        found = {"out": coder(x).contiguous(), "latents": coder.encode(x).contiguous()}
    save_file(found, folder / "theirs.safetensors", metadata={"kind": type(coder).__name__})
"""
THRESHOLD_KINDS = {
    "JumpReLUSAE": [["activation=jumprelu"], ["activation=batchtopk", "matryoshka_widths=[128,512]"]],
    "JumpReLUTranscoder": [["activation=jumprelu", "model_type=transcoder"]],
    "JumpReLUSkipTranscoder": [
        ["activation=batchtopk", "model_type=transcoder", "skip_connection=true"],
        ["activation=jumprelu", "skip_connection=true"],
    ],
}


def test_saelens_computes_what_coders_with_thresholds_do(tmp_path: Path) -> None:
    x = 3 * torch.randn(200, D, generator=torch.Generator().manual_seed(0))
    save_file({"x": x}, tmp_path / "x.safetensors")
    written = {}
    for kind, settings in [(kind, settings) for kind, every in THRESHOLD_KINDS.items() for settings in every]:
        run, coders = write_random_run(tmp_path / str(len(written)), *settings, "layers=[2]")
        ((name, coder),) = coders.items()
        written[export(str(run), "sae_lens", tmp_path / f"out{len(written)}") / name] = kind, coder
    done = run_in(
        "saelens", "-c", LOAD_MANY_IN_SAELENS, tmp_path / "x.safetensors", *written
    )  # in one process, since it starts slowly
    assert done.returncode == 0, done.stderr
    for folder, (kind, coder) in written.items():
        with safe_open(folder / "theirs.safetensors", "pt") as theirs:
            assert theirs.metadata() == {"kind": kind}
            ours = coder(x)
            torch.testing.assert_close(theirs.get_tensor("out"), ours.sae_out, atol=1e-5, rtol=0)
            latents = torch.zeros(200, LATENTS).scatter(1, ours.latent_indices, ours.latent_acts)
            torch.testing.assert_close(theirs.get_tensor("latents"), latents, atol=1e-5, rtol=0)


NORMALISED = ["normalize_activations=mean_norm", "layers=[2]"]


@pytest.mark.parametrize(
    ("settings", "coder"),
    [
        (["activation=jumprelu", "jumprelu_init_threshold=1"], "layers.2"),
        (["activation=batchtopk", "model_type=transcoder", "skip_connection=true"], "layers.2.mlp"),
    ],
)
def test_saelens_takes_activations_as_they_are_from_a_run_that_normalised_them(
    tmp_path: Path, settings: list[str], coder: str
) -> None:
    run = trained(tmp_path, *NORMALISED, *settings)
    out = export(str(run.directory), "sae_lens", tmp_path / "out")
    model = loading.load(load_config("experiment=demo"), torch.device("cpu"))
    seen = forward.capture(model, [coder], torch.tensor([TOKENS]))[coder]
    x = (seen.input if "mlp" in coder else seen.output)[0].contiguous()
    save_file({"x": x}, tmp_path / "x.safetensors")
    done = run_in("saelens", "-c", LOAD_MANY_IN_SAELENS, tmp_path / "x.safetensors", out / coder)
    assert done.returncode == 0, done.stderr
    theirs, ours = load_file(out / coder / "theirs.safetensors"), run.coders[coder](x)
    assert (ours.latent_acts > 0).any()
    torch.testing.assert_close(theirs["out"], ours.sae_out, atol=1e-5 * ours.sae_out.abs().max().item(), rtol=0)


# A set as circuit-tracer itself loads one, for which it wants the files by path and a name.
LOAD_BY_CIRCUIT_TRACER = """
import sys, torch, yaml
from pathlib import Path
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from circuit_tracer.utils.hf_utils import load_transcoders
folder = Path(sys.argv[1])
config = yaml.safe_load((folder / "config.yaml").read_text())
config |= {"scan": "set", "transcoders": [str(folder / f"layer_{i}.safetensors") for i in range(6)]}
x = load_file(sys.argv[2])["x"]
with torch.no_grad():
    transcoders = load_transcoders(config, torch.device("cpu"))
    save_file({"latents": transcoders.encode(x), "out": torch.stack([t(one) for t, one in zip(transcoders, x)])}, sys.argv[3])
"""


@pytest.mark.parametrize("settings", [["activation=batchtopk"], ["activation=jumprelu", "skip_connection=true"]])
def test_circuit_tracer_by_itself_computes_what_transcoders_with_thresholds_do(tmp_path: Path, settings: list[str]) -> None:
    run, coders = write_random_run(tmp_path, *settings, "model_type=transcoder", "layers=null")
    out = export(str(run), "circuit_tracer", tmp_path / "set")
    x = 3 * torch.randn(6, 50, D, generator=torch.Generator().manual_seed(0))
    save_file({"x": x}, tmp_path / "x.safetensors")
    script = [LOAD_BY_CIRCUIT_TRACER, out, tmp_path / "x.safetensors", tmp_path / "theirs.safetensors"]
    done = run_in("circuit_tracer", "-c", *script)
    assert done.returncode == 0, done.stderr
    theirs = load_file(tmp_path / "theirs.safetensors")
    for i in range(6):
        ours = coders[f"layers.{i}.mlp"](x[i])
        latents = torch.zeros(50, LATENTS).scatter(1, ours.latent_indices, ours.latent_acts)
        torch.testing.assert_close(theirs["latents"][i], latents, atol=1e-5, rtol=0)
        torch.testing.assert_close(theirs["out"][i], ours.sae_out, atol=1e-5, rtol=0)


# What circuit-tracer makes of each layer's MLP input, and what it takes for the errors of all layers on a prompt.
LOAD_IN_CIRCUIT_TRACER = """
import sys, torch
from pathlib import Path
from safetensors import safe_open
from safetensors.torch import load_file, save_file
sys.path.insert(0, sys.argv[1])
from attribution_graph import load_model, load_set
given = load_file(sys.argv[3])
with torch.no_grad():
    out = torch.stack([transcoder(x) for transcoder, x in zip(load_set(Path(sys.argv[2])), given["x"])])
    errors = load_model(Path(sys.argv[2])).setup_attribution(given["tokens"]).error_vectors
save_file({"out": out.contiguous(), "errors": errors.contiguous()}, sys.argv[4])
"""


@pytest.mark.parametrize("settings", [[], ["skip_connection=true"], ["activation=jumprelu"]])
def test_circuit_tracer_computes_what_the_transcoders_do_on_every_layer(tmp_path: Path, settings: list[str]) -> None:
    run, coders = write_random_run(tmp_path, "model_type=transcoder", "layers=null", *settings)
    out = export(str(run), "circuit_tracer", tmp_path / "set")
    model = loading.load(load_config("experiment=demo"), torch.device("cpu"))
    names = [f"layers.{i}.mlp" for i in range(6)]
    seen = forward.capture(model, names, torch.tensor([TOKENS]))
    x = torch.stack([seen[name].input[0] for name in names])
    save_file({"x": x, "tokens": torch.tensor(TOKENS)}, tmp_path / "x.safetensors")
    done = run_in(
        *("circuit_tracer", "-c", LOAD_IN_CIRCUIT_TRACER, ROOT / "examples", out),
        *(tmp_path / "x.safetensors", tmp_path / "theirs.safetensors"),
    )
    assert done.returncode == 0, done.stderr
    theirs = load_file(tmp_path / "theirs.safetensors")
    with torch.no_grad():
        ours = torch.stack([coders[name](given).sae_out for name, given in zip(names, x, strict=True)])
    torch.testing.assert_close(theirs["out"], ours, atol=1e-5, rtol=0)
    # Its language model is transformers 4's; it leaves the first position out. So the same modules are read and replaced.
    errors = torch.stack([seen[name].output[0] for name in names]) - ours
    torch.testing.assert_close(theirs["errors"][:, 1:], errors[:, 1:], atol=1e-4, rtol=1e-4)


def test_an_attribution_graph_is_drawn_of_a_prompt(tmp_path: Path) -> None:
    run = trained(tmp_path, "model_type=transcoder", "layers=null", "lr=3e-2", "max_samples=400")
    add_latents(run.directory, list(run.coders), 512)
    out = export(str(run.directory), "circuit_tracer", tmp_path / "set", features="true")
    script = ROOT / "examples" / "attribution_graph.py"
    done = run_in(
        "circuit_tracer", script, out, "import os, sys", "--out", tmp_path / "graph", "--nodes", "0.95", "--edges", "0.95"
    )
    assert done.returncode == 0, done.stderr
    assert "replacement score 0." in done.stdout
    assert (tmp_path / "graph" / "graph.png").read_bytes().startswith(b"\x89PNG")
    drawn = json.loads((tmp_path / "graph" / "graph.json").read_text())
    assert drawn["metadata"]["prompt_tokens"][1:] == ["import", " os", ",", " sys"]
    assert {node["feature_type"] for node in drawn["nodes"]} >= {"cross layer transcoder", "embedding", "logit"}
    assert drawn["links"]
    numbers = {node["feature"] for node in drawn["nodes"] if node["feature_type"] == "cross layer transcoder"}
    files = tmp_path / "graph" / drawn["metadata"]["scan"].removeprefix("./data/")  # where circuit-tracer's server looks for them
    assert {int(path.stem) for path in files.iterdir()} == numbers
    wrong = run_in("circuit_tracer", script, tmp_path, "import os")
    assert wrong.returncode == 1
    assert "no config.yaml in it" in wrong.stderr
    assert "Traceback" not in wrong.stderr
