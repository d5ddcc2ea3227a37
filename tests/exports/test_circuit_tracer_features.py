"""What circuit-tracer's page shows of each latent is what `sae-latents` has found."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from helpers.peers import run_in
from helpers.runs_with_latents import write_run_with_latents
from sae_transcoder.config import ConfigError
from sae_transcoder.exports.activation_distributions import linear_histogram, percentiles
from sae_transcoder.exports.circuit_tracer_features import paired
from sae_transcoder.exports.write import export
from sae_transcoder.run_store import latent_files

TRANSCODERS = ["model_type=transcoder", "layers=null"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run with latents, and the set that was exported of it."""
    folder = tmp_path_factory.mktemp("features")
    run_dir, _ = write_run_with_latents(folder, *TRANSCODERS)
    return run_dir, export(str(run_dir), "circuit_tracer", folder / "set", features="true")


def test_every_latent_has_a_file_with_its_contexts(made: tuple[Path, Path]) -> None:
    run_dir, out = made
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["scan"] == "./data/features/random"
    files = {path.stem: json.loads(path.read_text()) for path in (out / "features" / "random").iterdir()}
    assert len(files) == 6 * 40
    latents_dir = run_dir / "latents" / "coders"
    texts = latent_files.read_vocabulary(latents_dir)
    for layer in (0, 5):
        own_dir = latents_dir / f"layers.{layer}.mlp"
        rows = latent_files.read_table(own_dir / "latents.parquet").to_pylist()
        contexts = latent_files.read_table(own_dir / "contexts.parquet").to_pylist()
        for row in rows:
            feature = files[str(paired(layer, row["latent"]))]
            assert (feature["index"], feature["activation_frequency"]) == (row["latent"], row["density"])
            examples = [one for group in feature["examples_quantiles"] for one in group["examples"]]
            own = [context for context in contexts if context["latent"] == row["latent"]]
            assert len(examples) == len(own)
            for one, context in zip(examples, own, strict=True):
                assert one["tokens_acts_list"] == pytest.approx(context["activations"], rel=1e-3)
                assert one["tokens_acts_list"][one["train_token_ind"]] == pytest.approx(context["activation"], rel=1e-3)
                shown = texts[context["tokens"][one["train_token_ind"]]].replace("\n", "⏎")
                assert one["tokens"][one["train_token_ind"]] == shown
            assert feature["top_logits"] == [texts[token].replace("\n", "⏎") for token in row["raised"]]
    names = [group["quantile_name"] for group in files[str(paired(0, 0))]["examples_quantiles"]]
    assert names[0] == "Strongest"
    assert "90% to 100% of the largest" in names


def test_the_set_is_the_same_without_features_but_for_the_scan(made: tuple[Path, Path], tmp_path: Path) -> None:
    run_dir, with_features = made
    out = export(str(run_dir), "circuit_tracer", tmp_path / "set")
    config = yaml.safe_load((with_features / "config.yaml").read_text())
    del config["scan"]
    assert yaml.safe_load((out / "config.yaml").read_text()) == config
    assert sorted(path.name for path in with_features.iterdir() if path.name != "features") == sorted(
        path.name for path in out.iterdir()
    )


def test_a_latents_number_is_paired_as_the_page_takes_it_apart() -> None:
    seen = {paired(layer, latent) for layer in range(20) for latent in range(200)}
    assert len(seen) == 20 * 200
    assert paired(3, 2) == 17


@pytest.mark.parametrize("largest", [5.0, 40.0])
def test_distributions_keep_the_number_of_activations_and_the_largest(largest: float) -> None:
    activations = np.random.default_rng(0).uniform(0.5, 4.9, 2000)
    edges = np.arange(-4, 4.5, 0.25)
    counts = np.histogram(np.log2(activations), edges)[0]
    counts[-1] += largest == 40  # one beyond the outermost edge
    histogram = linear_histogram(counts.tolist(), edges.tolist(), largest)
    assert sum(histogram) == pytest.approx(counts.sum())
    quantiles = percentiles(counts.tolist(), edges.tolist(), largest)
    assert quantiles[-1] == largest
    assert quantiles == sorted(quantiles)
    assert quantiles[49] == pytest.approx(np.median(activations), rel=0.05)
    assert percentiles([0, 0], [0.0, 1.0, 2.0], 0.0) == [0.0] * 100  # one that never fires


def test_features_without_latents_and_for_other_targets_are_refused(made: tuple[Path, Path], tmp_path: Path) -> None:
    run_dir, _ = made
    for target, value, part in [
        ("sae_lens", "true", "read with to=circuit_tracer only; leave features out"),
        ("circuit_tracer", "yes", "features=yes: neither true nor false; write features=true"),
    ]:
        with pytest.raises(ConfigError, match=part):
            export(str(run_dir), target, tmp_path / "out", features=value)
    shutil.copytree(run_dir, tmp_path / "bare", ignore=shutil.ignore_patterns("latents"))
    with pytest.raises(ConfigError, match=r"is not there .*; run sae-latents .*bare first"):
        export(str(tmp_path / "bare"), "circuit_tracer", tmp_path / "out", features="true")
    assert not (tmp_path / "out").exists()


READ_BY_CIRCUIT_TRACER = """
import sys
from pathlib import Path
from circuit_tracer.frontend.feature_models import Model
from circuit_tracer.frontend.graph_models import Node
for path in Path(sys.argv[1]).iterdir():
    feature = Model.model_validate_json(path.read_text())
    layer = int(feature.transcoder_id.split(".")[1])
    assert Node.feature_node(layer, 0, feature.index).feature == int(path.stem)
    assert len(feature.quantile_values) == 100 and len(feature.histogram) == 40
print("read")
"""


@pytest.mark.peers
def test_circuit_tracer_reads_the_files_and_finds_them_by_its_own_numbers(made: tuple[Path, Path]) -> None:
    done = run_in("circuit_tracer", "-c", READ_BY_CIRCUIT_TRACER, made[1] / "features" / "random")
    assert done.stdout == "read\n", done.stderr
