"""Configs that are composed without Hydra's doing all of it again are those that it composes."""

import os
import shutil
from pathlib import Path

import pytest
from hydra import compose
from hydra.core.config_store import ConfigStore

from sae_transcoder.config import GROUPS, Config, ConfigError, composer
from sae_transcoder.config.composer import composed, composed_on, from_values
from sae_transcoder.config.composition import CONF, hydra_on_conf, typed
from sae_transcoder.launch.sweep_from_overrides import load_sweep_config

JOBS = [
    ["model_type=sae", "k=4"],
    ["model_type=transcoder", "k=5", "lr=1e-3"],
    ["model_type=sae", "optimizer=muon", "architecture=skip", "layers=[1,2]", "init_seeds=[3]"],
    ["experiment=demo", "model_type=transcoder", "layers=[3]", "lr=null", "dtype=bfloat16"],
    ["experiment=demo", "layers=null", "hookpoints=['layers.[0-2].mlp','layers.5']", "save_best=false"],
    ["model_type=sae", "dataset=local_text", "dataset_name='a b, c=[d]'", 'sweep_name="x y"', "save_dir=a\\,b"],
    ["model_type=sae", "tracker=wandb", "tags=[a,'b c',3]", "project='12'", "max_norm_multiple=3"],
    ["model_type=sae", "expansion_factor=16", "k=${expansion_factor}"],
    ["model_type=sae", "k=3", "k=${batch_size}", "k=7", "batch_size=3"],
    ["model_type=sae", "num_latents=${k}", "k=6", "exclude_tokens=[]"],
    ["model_type=sae", "k=3", "layers=[1]", "lr=1e-3", "layers=[2,3]", "optimizer=muon", "k=7"],
    ["hydra.job.chdir=false", "model_type=sae", "hardware=cpu", "threads=2"],
]


def test_jobs_and_single_configs_are_composed_as_hydra_composes_them() -> None:
    loader, master = load_sweep_config([])
    for overrides, job in zip(JOBS, composer.compose_jobs(loader, master, JOBS), strict=True):
        by_hydra = typed(loader.load_sweep_config(master, overrides))
        assert repr(job) == repr(composed(overrides)) == repr(by_hydra), overrides  # 3 is not 3.0 in a signature


def test_the_errors_of_jobs_stand_in_their_places() -> None:
    jobs = [["model_type=sae", "k=many"], ["model_type=vae"], ["k=3"], ["model_type=sae", "lr=1"]]
    *bad, good = composer.compose_jobs(*load_sweep_config([]), jobs)
    assert isinstance(good, Config)
    assert [str(fault).split(":")[0] for fault in bad] == ["k=many", "model_type=vae", "model_type is missing"]


@pytest.mark.parametrize("overrides", [["k=4,8"], ["k=range(1,3)"], ["k=4,8", "k=4"], ["optimizer=adam,muon"]])
def test_a_sweep_is_refused_where_one_config_is_wanted(overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match="several values are a sweep"):
        composed(["model_type=sae", *overrides])


def test_a_preset_that_changes_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(CONF, tmp_path / "conf")
    for module in ("composer", "composition"):
        monkeypatch.setattr(f"sae_transcoder.config.{module}.CONF", tmp_path / "conf")
    overrides = ["model_type=sae", "architecture=mine"]
    with pytest.raises(ConfigError, match="architecture=mine"):
        composed(overrides)
    preset = tmp_path / "conf" / "architecture" / "mine.yaml"
    for k in (3, 4):
        preset.write_text(f"# @package _global_\nk: {k}\n")
        os.utime(preset, ns=(k, k))  # a clock may tick less often than this loop
        assert composed(overrides).k == k


@pytest.mark.parametrize(
    "overrides",
    [
        ["batch_size=2", "layers=[2,3]", "device=null"],
        ["dataset=local_text", "dataset_name=x"],
        ["max_seq_length=99", "dataset=demo", "hardware=cpu", "model=demo"],
        ["k=${batch_size}", "batch_size=3"],
    ],
)
def test_settings_with_overrides_are_composed_as_hydra_composes_them(overrides: list[str]) -> None:
    base = vars(composed(["experiment=demo", "model_type=transcoder", "k=7", "layers=[1]", "max_seq_length=77", "threads=3"]))
    ConfigStore.instance().store(name="by_hydra", node={"defaults": ["schema", "_self_"], **base})
    with hydra_on_conf():
        by_hydra = typed(compose("by_hydra", [f"+{o}" if o.split("=")[0] in GROUPS else o for o in overrides]))
    assert repr(composed_on(base, overrides)) == repr(by_hydra)


def test_values_are_converted_to_their_fields_types_or_refused() -> None:
    values = vars(composed(["experiment=demo"]))
    cfg = from_values(values | {"k": "5", "lr": 1, "layers": ["2", 3]})
    assert (cfg.k, type(cfg.k), type(cfg.lr), cfg.layers) == (5, int, float, [2, 3])
    with pytest.raises(ConfigError, match="k=many: must be a whole number"):
        from_values(values | {"k": "many"})
