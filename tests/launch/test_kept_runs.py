"""Runs of the version before (tests/kept_runs/README.md) keep their names, are skipped when done, resume, and are read by every command."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

from helpers import TESTS
from helpers.run_directory_page import CACHE, undocumented
from helpers.short_runs import weights
from helpers.sweeps import here, runs, states
from sae_transcoder import report
from sae_transcoder.config import FIELDS, Config, run_name, signature
from sae_transcoder.config.composer import composed
from sae_transcoder.evaluate import evaluate
from sae_transcoder.exports.write import export
from sae_transcoder.launch.sweep_from_overrides import combinations, load_sweep_config
from sae_transcoder.launch.sweep_jobs import compose_sweep
from sae_transcoder.run_store import eval_file, run_files
from sae_transcoder.run_store.differing_settings import differences

KEPT = TESTS / "kept_runs"


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the kept runs in the working folder, as they lay where they were trained."""
    shutil.copytree(KEPT / "runs", tmp_path / "outputs")
    shutil.copy(KEPT / "text.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "outputs"


def overrides(sweep: str) -> dict[str, list[str]]:
    """{run: its overrides} of a kept sweep."""
    return {name: run["overrides"] for name, run in json.loads((KEPT / "runs" / sweep / "sweep.json").read_text())["runs"].items()}


def command(sweep: str) -> list[str]:
    """The arguments that trained a kept sweep."""
    first = next(iter(overrides(sweep).values()))
    return ["-m", *("k=2,4" if override.startswith("k=") else override for override in first)]


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["model_type=sae", "k=4,8", "lr=1e-3"], "sae-k-a42444bc"),
        (["model_type=sae,transcoder", "optimizer=adam,muon", "num_latents=64"], "runs-model_type.optimizer-b880f01a"),
    ],
)
def test_a_sweep_without_a_name_is_called_as_it_was(overrides: list[str], name: str) -> None:
    loader, master = load_sweep_config(overrides)
    jobs = compose_sweep(loader, master, combinations(loader, master, overrides), 0)
    assert jobs[0].cfg.sweep_name == name, "as the version before named it"
    loader, master = load_sweep_config([*overrides, "threshold_beta=0.9"])
    others = compose_sweep(loader, master, combinations(loader, master, [*overrides, "threshold_beta=0.9"]), 0)
    assert others[0].cfg.sweep_name != name, "and a setting that was added counts once it is set"


@pytest.mark.parametrize("sweep", ["done", "stopped"])
def test_a_kept_run_has_the_name_and_the_signature_that_its_command_gives_now(sweep: str) -> None:
    for name, settings in overrides(sweep).items():
        cfg = composed(settings)
        status = json.loads((KEPT / "runs" / sweep / name / "status.json").read_text())
        assert (run_name(cfg), signature(cfg)) == (name, status["signature"])


def test_a_kept_run_has_the_defaults_of_the_fields_that_it_lacks() -> None:
    name, settings = next(iter(overrides("done").items()))
    directory = KEPT / "runs" / "done" / name
    written = yaml.safe_load((directory / ".hydra" / "config.yaml").read_text())
    config = run_files.read_config(directory)
    assert {"matryoshka_widths", "threshold_beta", "lr_schedule"} <= set(FIELDS) - set(written)
    assert Config(**config) == composed(settings)
    other = composed([*settings, "k=3", "lr_schedule=cosine"])
    assert differences(directory, other) == "k: 2 there, 3 here; lr_schedule: linear there, cosine here"


def test_the_same_command_skips_a_kept_sweep_that_is_done(outputs: Path) -> None:
    before = {path: path.read_bytes() for path in outputs.glob("done/*/**/*") if path.is_file()}
    code, out, errors = here(*command("done"))
    assert code == 0, errors
    assert "2 runs (2 done)" in out
    assert before == {path: path.read_bytes() for path in before}


def test_the_same_command_resumes_a_kept_sweep_to_the_coders_of_one_never_stopped(outputs: Path) -> None:
    code, out, errors = here(*command("stopped"))
    assert (code, states(outputs / "stopped")) == (0, ["done", "done"]), out + errors
    for name, directory in runs(outputs / "stopped").items():
        steps = [json.loads(line)["step"] for line in (directory / "metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(1, 151)), "it went on from where it was"
        assert undocumented(directory) == []
        ours, undisturbed = weights(directory / "coders"), weights(KEPT / "undisturbed" / name / "coders")
        assert ours.keys() == undisturbed.keys()
        for key, value in ours.items():  # CPUs differ in their rounding
            torch.testing.assert_close(value, undisturbed[key], rtol=1e-4, atol=1e-4 * float(undisturbed[key].abs().max()))
    assert undocumented(outputs.parent / "cache" / "sae_transcoder", CACHE) == []


def test_the_report_lists_kept_runs(outputs: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sae-report", str(outputs)])
    report.main()
    printed = capsys.readouterr()
    assert "2 interrupted, 2 done" in printed.out
    assert all(name in printed.out for sweep in ("done", "stopped") for name in overrides(sweep))
    assert not printed.err


def test_a_kept_run_is_measured_and_exported(outputs: Path, tmp_path: Path) -> None:
    directory = next(iter(runs(outputs / "done").values()))
    before = eval_file.read(directory)
    assert before is not None
    (measured,) = evaluate([str(directory)])
    assert measured.mean()["fvu"] == pytest.approx(before.mean()["fvu"], rel=1e-4)
    for target in ("sae_lens", "hub"):
        export(str(directory), target, tmp_path / target)
    settings = yaml.safe_load((tmp_path / "hub" / "training_config.yaml").read_text())
    assert (settings["k"], settings["matryoshka_widths"], settings["lr_schedule"]) == (2, None, "linear")
