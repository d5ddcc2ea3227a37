"""Runs from Python: the same as by command."""

import json
import threading
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from helpers.short_runs import assert_same
from helpers.sweeps import SHAPE, SHORT, here
from sae_transcoder.api import load_config, sweep, train
from sae_transcoder.config import ConfigError, run_name
from sae_transcoder.data import token_sets
from sae_transcoder.language_model import model_checks
from sae_transcoder.launch.sweep import RunFailed
from sae_transcoder.run_store import run_records, status


def test_three_lines_give_the_weights_of_the_command(cache: Path, tmp_path: Path) -> None:
    settings = [*SHORT, "k=4", "layers=[1,2]", "init_seeds=[0,1]", f"cache_dir={cache}"]
    cfg = load_config(*settings, f"save_dir={tmp_path}/python")
    run = train(cfg)
    code, _, errors = here(*settings, f"save_dir={tmp_path}/command")
    assert code == 0, errors
    assert_same(run.directory, tmp_path / "command" / run.directory.name)
    assert list(run.coders) == ["layers.1/seed0", "layers.1/seed1", "layers.2/seed0", "layers.2/seed1"]
    coder = run.coders["layers.2/seed1"]
    out = coder(torch.randn(3, coder.d_in))
    assert (out.sae_out.shape, out.latent_acts.shape) == ((3, 256), (3, 4))
    assert 0 < run.evaluation.mean()["fvu"] < 1
    (record,) = run_records.read_all([tmp_path / "python"], pytest.fail)
    assert record.config["k"] == 4


@pytest.mark.parametrize("by", ["a command", "a program"])
def test_a_run_is_begun_with_what_it_was_planned_with(
    by: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    for module, name in ((model_checks, "stored_weight_faults"), (token_sets, "prepare")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, name=name, real=real: [read.append(name), real(*given)][1])
    settings = [*SHORT, "k=4", "max_steps=2", f"save_dir={tmp_path}", f"cache_dir={cache}"]
    if by == "a command":
        assert here(*settings)[0] == 0
    else:
        train(load_config(*settings))
    assert sorted(read) == ["prepare", "stored_weight_faults"]


def test_a_run_that_is_done_is_taken_as_it_is(cache: Path, tmp_path: Path) -> None:
    cfg = load_config(*SHORT, "k=4", f"save_dir={tmp_path}", f"cache_dir={cache}")
    first = train(cfg)
    written = (first.directory / "metrics.jsonl").stat().st_mtime_ns
    assert train(cfg).evaluation == first.evaluation
    assert (first.directory / "metrics.jsonl").stat().st_mtime_ns == written


def test_a_sweep_gives_its_runs_in_order_and_each_is_that_of_the_command(cache: Path, tmp_path: Path) -> None:
    settings = [*SHAPE, "max_samples=64", "k=4,5", "expansion_factor=2,3", f"cache_dir={cache}", "sweep_name=s"]
    runs = sweep(*settings, f"save_dir={tmp_path}/python")
    assert [(run.config.k, run.config.expansion_factor) for run in runs] == [(4, 2), (4, 3), (5, 2), (5, 3)]
    code, _, errors = here("-m", *settings, f"save_dir={tmp_path}/command")
    assert code == 0, errors
    for run in runs:
        assert_same(run.directory, tmp_path / "command" / "s" / run.directory.name)


def test_a_failing_run_of_a_sweep_is_raised_once_the_others_are_done(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="diverged"):
        sweep(*SHORT, "k=4", "lr=1e30,1e-2", f"save_dir={tmp_path}", f"cache_dir={cache}")
    assert sorted(json.loads(p.read_text())["state"] for p in tmp_path.rglob("status.json")) == ["done", "failed"]


def test_a_json_file_is_an_override_here_too(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "old.json").write_text('{"model_type": "sae", "k": 4, "wandb_project": "mine"}')
    cfg = load_config(f"json={tmp_path}/old.json", "k=5", "tracker=trackio")
    assert (cfg.k, cfg.project) == (5, "mine")
    assert "wandb_project is now project" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["model_type=sae", "kk=1"], "there is no field or group kk"),
        (["k=16"], "model_type is missing"),
        (["model_type=sae", "k=many"], "k=many: must be a whole number"),
        (["json=none.json"], "cannot be read"),
    ],
)
def test_wrong_overrides_are_told(overrides: list[str], part: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(*overrides)
    assert part in str(refused.value)


def test_what_the_command_refuses_is_refused_before_anything_is_written(cache: Path, tmp_path: Path) -> None:
    usual = [f"save_dir={tmp_path}/none", f"cache_dir={cache}"]
    for wrong, part in [("layers=[9]", "layers 0 to 5"), ("hardware=slurm", "sae-train"), ("k=99999", "k=99999")]:
        with pytest.raises(ConfigError, match=part):
            train(load_config(*SHORT, wrong, *usual))
        with pytest.raises(ConfigError, match=part):
            sweep(*SHORT, wrong, "lr=1e-2,1e-3", *usual)
    with pytest.raises(ConfigError, match="there is no field or group kk"):
        sweep(*SHORT, "kk=1,2", *usual)
    assert not (tmp_path / "none").exists()


def test_it_works_in_a_program_that_uses_hydra_itself(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.yaml").write_text("mine: 1\n")
    with initialize_config_dir(str(tmp_path / "theirs"), version_base="1.3"):
        assert load_config("model_type=sae", "k=5").k == 5
        runs = sweep(*SHAPE, "max_samples=16", "k=4", "max_steps=2", f"save_dir={tmp_path}", f"cache_dir={cache}")
        assert len(runs) == 1
        assert compose("config").mine == 1


def test_changed_fields_are_typed_and_what_a_run_sets_for_the_process_ends_with_it(cache: Path, tmp_path: Path) -> None:
    cfg = load_config(*SHORT, "max_steps=2", "threads=2", "deterministic=true", f"save_dir={tmp_path}", f"cache_dir={cache}")
    cfg.k, cfg.lr = "4", 1  # type: ignore[assignment]
    run = train(cfg)
    assert (run.config.k, run.config.lr) == (4, 1.0)
    assert run.directory.name == run_name(load_config(*SHORT, "max_steps=2", "k=4", "lr=1"))
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (1, False)
    cfg.k = "many"  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="k"):
        train(cfg)


def test_a_run_that_is_trained_elsewhere_is_left_alone(cache: Path, tmp_path: Path) -> None:
    run = train(load_config(*SHORT, "k=4", "max_steps=2", f"save_dir={tmp_path}", f"cache_dir={cache}"))
    run_status = status.read(run.directory)
    assert run_status is not None
    run_status.state = status.State.running
    status.write(run.directory, run_status)
    before = (run.directory / ".hydra" / "config.yaml").stat().st_mtime_ns
    with status.lock(run.directory), pytest.raises(ConfigError, match="not started again"):
        train(run.config)
    assert (run.directory / ".hydra" / "config.yaml").stat().st_mtime_ns == before


def test_a_search_is_left_to_the_command(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sae-train -m"):
        sweep("experiment=demo_search", f"save_dir={tmp_path}", f"cache_dir={cache}")


def test_a_run_trains_outside_the_main_thread_too(cache: Path, tmp_path: Path) -> None:
    runs = []
    cfg = load_config(*SHORT, "k=4", "max_steps=2", f"save_dir={tmp_path}", f"cache_dir={cache}")
    thread = threading.Thread(target=lambda: runs.append(train(cfg)))
    thread.start()
    thread.join()
    assert runs[0].evaluation.mean()["l0"] > 0
