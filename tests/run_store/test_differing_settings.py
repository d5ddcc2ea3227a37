"""What is said where a run's directory or a sweep's folder holds runs of other settings."""

from dataclasses import replace
from pathlib import Path

import pytest

from helpers.command_line import composed
from sae_transcoder.config import Config, ConfigError, run_dir
from sae_transcoder.preflight.run_directory import refuse_directory
from sae_transcoder.run_store import run_files, status
from sae_transcoder.run_store.differing_settings import differences, nearest_run, settings_apart
from sae_transcoder.run_store.status import State, Status


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    """The config of a run that its directory holds, with a name of its own."""
    cfg = composed("experiment=demo", "lr=0.01", f"save_dir={tmp_path}", "run_name=mine")
    keep(cfg)
    return cfg


def keep(cfg: Config) -> None:
    """Writes the files by which a run is known."""
    run_files.write_config(cfg)
    status.write(run_dir(cfg), Status(State.done, "another"))


def test_a_reused_name_says_which_fields_differ_and_how(cfg: Config) -> None:
    other = replace(cfg, lr=0.02, layers=[1, 3], matryoshka_widths=[])
    with pytest.raises(ConfigError) as refused:
        refuse_directory(other)
    there = "layers: [2] there, [1, 3] here; matryoshka_widths: null there, [] here; lr: 0.01 there, 0.02 here"
    assert str(refused.value) == (
        f"run_name=mine: {run_dir(cfg)} holds a run of other settings ({there}); choose another run_name or save_dir"
    )


@pytest.mark.parametrize("resume", ["auto", "never", "must"])
def test_so_does_every_kind_of_resume(cfg: Config, resume: str) -> None:
    with pytest.raises(ConfigError, match=r"run_name=mine: .* \(lr: 0.01 there, 0.02 here\)"):
        refuse_directory(replace(cfg, lr=0.02, resume=resume))


def test_resume_must_without_a_state_names_the_nearest_run(cfg: Config) -> None:
    keep(replace(cfg, lr=0.03, k=7, run_name="far"))
    with pytest.raises(ConfigError, match=r"holds no training state \(mine beside it differs: lr: 0.01 there, 0.02 here\); check"):
        refuse_directory(replace(cfg, lr=0.02, run_name=None, resume="must"))
    assert nearest_run(run_dir(cfg) / "nothing", cfg) is None


def test_settings_that_are_not_kept_or_do_not_differ_are_told_as_that(cfg: Config) -> None:
    assert differences(run_dir(cfg), cfg) == "of the same values, but another version's"
    (run_dir(cfg) / run_files.CONFIG).unlink()
    assert differences(run_dir(cfg), cfg) == "which are not known, .hydra/config.yaml is missing"


def test_a_reused_sweep_says_in_what_all_its_other_runs_differ(cfg: Config, tmp_path: Path) -> None:
    keep(replace(cfg, k=7, run_name="second"))
    here = [replace(cfg, lr=0.02, k=k, run_name=f"new{k}") for k in (7, 32)]
    directories = [run_dir(run) for run in here]
    assert settings_apart(tmp_path, directories, here) == (2, "lr: 0.01 there, 0.02 here")
    assert settings_apart(tmp_path, directories, [*here, replace(cfg, k=64)])[1] == "", "one of them has the rate of those there"
    assert settings_apart(tmp_path, [run_dir(cfg), tmp_path / "second"], here) == (0, "")
    keep(replace(cfg, lr=0.03, k=7, run_name="third"))
    assert settings_apart(tmp_path, directories, here) == (3, "lr: 0.01, 0.03 there, 0.02 here")
