"""What Neuronpedia's import reads is what `sae-latents` has found."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from helpers.runs_with_latents import write_run_with_latents
from sae_transcoder.config import ConfigError
from sae_transcoder.exports import stored_latents
from sae_transcoder.exports.neuronpedia import model_name, source_names
from sae_transcoder.exports.write import export
from sae_transcoder.run_store import latent_files
from sae_transcoder.run_store.latent_files import TOP


def lines(folder: Path) -> list[dict[str, Any]]:
    """The rows of a folder's batches, in their order."""
    paths = sorted(folder.iterdir(), key=lambda path: int(path.name.removeprefix("batch-").partition(".")[0]))
    return [json.loads(line) for path in paths for line in gzip.open(path, "rt", encoding="utf-8")]


def test_features_and_activations_are_those_of_the_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_latents, "AT_A_TIME", 16)
    run_dir, _ = write_run_with_latents(tmp_path, "layers=[1,2]")
    out = export(str(run_dir), "neuronpedia", tmp_path / "out", set="res-k4", creator="somebody")
    assert sorted(path.name for path in (out / "demo").iterdir()) == ["1-res-k4", "2-res-k4"]
    folder, own_dir = out / "demo" / "2-res-k4", run_dir / "latents" / "coders" / "layers.2"
    assert len(list((folder / "features").iterdir())) == 3
    texts = latent_files.read_vocabulary(own_dir.parent)
    rows = latent_files.read_table(own_dir / "latents.parquet").to_pylist()
    features = lines(folder / "features")
    assert [feature["index"] for feature in features] == [str(row["latent"]) for row in rows]
    for feature, row in zip(features, rows, strict=True):
        assert (feature["modelId"], feature["layer"]) == ("demo", "2-res-k4")
        assert (feature["maxActApprox"], feature["frac_nonzero"]) == (row["max_activation"], row["density"])
        assert feature["pos_str"] == [texts[token] for token in row["raised"]]
        assert feature["topkCosSimIndices"] == row["nearest"]
        assert sum(feature["freq_hist_data_bar_heights"]) == pytest.approx(sum(row["histogram"]))
    contexts = latent_files.read_table(own_dir / "contexts.parquet").to_pylist()
    activations = lines(folder / "activations")
    assert len({activation["id"] for activation in activations}) == len(contexts)
    for activation, context in zip(activations, contexts, strict=True):
        assert activation["index"] == str(context["latent"])
        assert activation["values"] == context["activations"]
        assert activation["tokens"] == [texts[token] for token in context["tokens"]]
        assert activation["maxValue"] == max(context["activations"])
        assert activation["values"][activation["qualifyingTokenIndex"]] == context["activation"]
        if context["range"] == TOP:
            assert (activation["binMin"], activation["binContains"]) == (-1, -1)
        else:
            assert activation["binMin"] <= context["activation"] <= activation["binMax"]
            assert 0 <= activation["binContains"] <= 1
    release, source = (json.loads((folder / f"{name}.jsonl").read_text()) for name in ("release", "source"))
    assert (release["name"], release["creatorName"]) == ("res-k4", "somebody")
    assert (source["id"], source["setName"], source["num_tokens_in_prompt"]) == ("2-res-k4", "res-k4", 256)


def test_sources_are_named_after_layer_set_module_and_seed() -> None:
    assert source_names(["h.3", "h.4"], "a") == {"h.3": ("a", "3-a"), "h.4": ("a", "4-a")}
    assert source_names(["layers.3/seed0", "layers.3/seed1"], "a")["layers.3/seed1"] == ("a", "3-a__seed1")
    assert source_names(["layers.3", "layers.3.self_attn"], "a") == {
        "layers.3": ("a-res", "3-a-res"),
        "layers.3.self_attn": ("a-self-attn", "3-a-self-attn"),
    }
    with pytest.raises(ConfigError, match="embed_tokens: lies in no layer"):
        source_names(["embed_tokens"], "a")


def test_models_have_neuronpedias_names() -> None:
    names = {name: model_name(name) for name in ("openai-community/gpt2", "google/gemma-2-2b", "demo")}
    assert names == {"openai-community/gpt2": "gpt2-small", "google/gemma-2-2b": "gemma-2-2b", "demo": "demo"}


def test_a_run_without_latents_and_names_that_make_no_address_are_refused(tmp_path: Path) -> None:
    run_dir, _ = write_run_with_latents(tmp_path, "layers=[2]")
    with pytest.raises(ConfigError, match="set=a/b: stands in an address"):
        export(str(run_dir), "neuronpedia", tmp_path / "out", set="a/b")
    (run_dir / "latents" / "coders" / "pass.json").unlink()
    with pytest.raises(ConfigError, match="run sae-latents"):
        export(str(run_dir), "neuronpedia", tmp_path / "out")
