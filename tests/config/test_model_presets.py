"""conf/model: each preset's model has the layers and sites that a config may name, told from its config alone, without a network."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from helpers import ROOT
from helpers.command_line import composed
from helpers.model_configs import config_only, known
from sae_transcoder.config import Site
from sae_transcoder.language_model import hookpoints, loading, model_class

CONF = ROOT / "conf" / "model"
CHOICES = sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != "demo")


def test_every_model_whose_config_is_kept_has_a_preset_and_the_other_way_round() -> None:
    names = [yaml.safe_load((CONF / f"{choice}.yaml").read_text())["model_name"] for choice in CHOICES]
    assert sorted(names) == sorted(known())


@pytest.mark.parametrize("choice", CHOICES)
def test_a_presets_layers_and_sites_are_found_and_as_wide_as_it_says(choice: str, tmp_path: Path) -> None:
    text = (CONF / f"{choice}.yaml").read_text()
    count, width = map(int, re.search(r"(\d+) layers of width (\d+)", text).groups())
    folder = config_only(yaml.safe_load(text)["model_name"], tmp_path)
    cfg = composed("model_type=sae", f"model={choice}", f"model_name={folder}")
    outline = loading.outline(cfg)
    assert model_class.predicts_next_token(outline.config)
    for site in Site:
        every = hookpoints.hookpoint_names(replace(cfg, site=site), outline)
        assert len(every) == count
        two = replace(cfg, site=site, layers=[0, 1])
        assert hookpoints.hookpoint_names(two, outline) == every[:2]
        assert hookpoints.widths(two, outline, every[:2]) == dict.fromkeys(every[:2], width)
