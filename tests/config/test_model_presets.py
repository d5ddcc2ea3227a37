"""conf/model: each preset's model has the layers and sites that a config may name, told from its config alone, without a network."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from helpers import ROOT
from helpers.command_line import composed
from helpers.model_configs import config_only, known
from sae_transcoder.config import Site, warmup_steps
from sae_transcoder.config.checks import faults
from sae_transcoder.config.run_length import needed_samples, run_length
from sae_transcoder.language_model import hookpoints, loading, model_class
from sae_transcoder.preflight.coder_size_faults import width_faults
from sae_transcoder.preflight.length_faults import length_faults

CONF = ROOT / "conf" / "model"
CHOICES = sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != "demo")
TO_THE_END = [
    "gemma2_2b",
    "gemma3_270m",
    "gemma3_4b",
    "gpt2",
    "llama3_2_1b",
    "pythia_14m",
    "qwen3_0_6b",
]  # one of each class of models


def test_every_model_whose_config_is_kept_has_a_preset_and_the_other_way_round() -> None:
    names = [yaml.safe_load((CONF / f"{choice}.yaml").read_text())["model_name"] for choice in CHOICES]
    assert sorted(names) == sorted(known())
    names_to_the_end = [yaml.safe_load((CONF / f"{choice}.yaml").read_text())["model_name"] for choice in TO_THE_END]
    assert sorted(known()[name]["model_type"] for name in names_to_the_end) == sorted({v["model_type"] for v in known().values()})


@pytest.mark.parametrize("choice", CHOICES)
def test_a_presets_layers_and_sites_are_found_and_as_wide_as_it_says(choice: str, tmp_path: Path) -> None:
    text = (CONF / f"{choice}.yaml").read_text()
    count, width = map(int, re.search(r"(\d+) layers of width (\d+)", text).groups())
    folder = config_only(yaml.safe_load(text)["model_name"], tmp_path)
    cfg = replace(composed("model_type=sae"), **yaml.safe_load(text) | {"model_name": str(folder)})
    outline = loading.outline(cfg)
    assert model_class.predicts_next_token(outline.config)
    every = [hookpoints.hookpoint_names(replace(cfg, site=site), outline) for site in Site]
    assert [len(names) for names in every] == [count] * len(Site)
    # The forward of one model of each class is tried to its end, of the others to its second layer.
    two = [hookpoints.hookpoint_names(replace(cfg, site=site, layers=[0, 1]), outline) for site in Site]
    assert two == [names[:2] for names in every]
    points = [name for names in two for name in names]
    assert hookpoints.widths(replace(cfg, eval_end_to_end=choice in TO_THE_END), outline, points) == dict.fromkeys(points, width)


def test_the_preset_of_saebench_is_a_run_of_its_length_on_its_layer(tmp_path: Path) -> None:
    published = composed("experiment=saebench_pythia_160m")
    assert (published.model_name, published.dataset_name) == ("EleutherAI/pythia-160m-deduped", "monology/pile-uncopyrighted")
    assert published.batch_size * published.max_seq_length == 2048
    folder = config_only("EleutherAI/pythia-160m", tmp_path)  # the deduplicated one has the same config but for its name
    outline = loading.outline(replace(published, model_name=str(folder)))
    widths = hookpoints.widths(published, outline, hookpoints.hookpoint_names(published, outline))
    assert widths == {"layers.8": 768}
    for num_latents, k, architecture in ((2**12, 640, "matryoshka"), (2**14, 80, "topk"), (2**16, 20, "jumprelu")):
        cfg = composed("experiment=saebench_pythia_160m", f"num_latents={num_latents}", f"k={k}", f"architecture={architecture}")
        samples = needed_samples(cfg)
        assert samples is not None
        length = run_length(cfg, samples)
        assert faults(cfg) + width_faults(cfg, widths) + length_faults(cfg, length, samples) == []
        assert length.steps * 2048 == pytest.approx(500_000_000, abs=2048)
        assert cfg.lr_decay_steps == length.steps // 5
        assert (cfg.lr, warmup_steps(cfg, length.steps)) == (3e-4, 1000)
