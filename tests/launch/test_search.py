"""A search with Optuna on the bundled model: a batch is a pack, finished runs are not trained again, and the best value is right."""

import subprocess
from pathlib import Path

import pytest
import yaml

from helpers.run_directory_page import undocumented
from helpers.sweeps import run
from sae_transcoder.run_store import eval_file, status
from sae_transcoder.run_store.status import State

pytestmark = pytest.mark.slow

pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs hydra-optuna-sweeper: pip install -e '.[search]'")

TINY = ["max_samples=null", "max_steps=4", "eval_samples=4", "expansion_factor=1", "log_every=1", "threads=1"]
TINY += ["hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2"]
RANGES = ["lr_warmup_steps=range(0,3)"]  # the preset's is longer than the run
SOME_DIVERGE = ["hydra/sweeper/sampler=random", "lr=choice(1e-2,1e30)", "lr_warmup_steps=0", "k=8,16,32"]


def search(cache: Path, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Runs the preset, shortened to four runs of four steps."""
    return run("-m", "experiment=demo_search", *TINY, f"save_dir={folder}", f"cache_dir={cache}", *overrides)


def optuna_results(folder: Path) -> dict:
    """Optuna's results file, which lies in the sweep's folder."""
    (results,) = folder.glob("*/optimization_results.yaml")
    return yaml.safe_load(results.read_text())


def states(folder: Path) -> dict[Path, State]:
    """{run's directory: its state} of the one sweep in a folder."""
    return {path.parent: status.read(path.parent).state for path in sorted(folder.glob("*/*/status.json"))}


def heldout(folder: Path, metric: str) -> dict[Path, float]:
    """{run's directory: a held-out metric} of all runs that have it."""
    return {d: e.mean()[metric] for d in states(folder) if (e := eval_file.read(d)) is not None}


def write_times(folder: Path) -> dict[Path, int]:
    """{path: when it was written} of each run's coder and metrics."""
    return {path: path.stat().st_mtime_ns for name in ("sae.safetensors", "metrics.jsonl") for path in folder.rglob(name)}


def test_the_best_value_is_the_best_runs_and_the_same_search_trains_nothing_again(cache: Path, tmp_path: Path) -> None:
    done = search(cache, tmp_path, *RANGES)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model: demo") == 2, "each batch of two is one pack"
    assert list(states(tmp_path).values()) == [State.done] * 4

    best, values = optuna_results(tmp_path), heldout(tmp_path, "fvu")
    winner = min(values, key=values.__getitem__)
    assert best["best_value"] == values[winner]
    config = yaml.safe_load((winner / ".hydra" / "config.yaml").read_text())
    assert best["best_params"] == {name: config[name] for name in ("lr", "lr_warmup_steps")}
    assert undocumented(winner.parent) == []
    assert done.stdout.splitlines()[-1] == f"Best value: {best['best_value']}"

    before = write_times(tmp_path)
    again = search(cache, tmp_path, *RANGES)
    assert again.returncode == 0, again.stderr
    assert write_times(tmp_path) == before
    assert optuna_results(tmp_path) == best
    assert "model: demo" not in again.stdout

    score = search(cache, tmp_path, *RANGES, "objective=ce_loss_score", "hydra.sweeper.direction=maximize")
    assert score.returncode == 0, score.stderr
    assert write_times(tmp_path) == before, "another objective of the same runs is read from disk"
    assert optuna_results(tmp_path)["best_value"] == max(heldout(tmp_path, "ce_loss_score").values())


def test_a_run_that_diverges_ends_the_search_only_where_no_failure_is_allowed(cache: Path, tmp_path: Path) -> None:
    done = search(cache, tmp_path, *SOME_DIVERGE)
    assert done.returncode == 0, done.stderr
    ended = states(tmp_path)
    assert set(ended.values()) == {State.failed, State.done}
    assert "training diverged; lower lr" in done.stdout
    values = heldout(tmp_path, "fvu")
    assert set(values) == {directory for directory, state in ended.items() if state == State.done}
    assert optuna_results(tmp_path)["best_value"] == min(values.values())
    assert optuna_results(tmp_path)["best_params"]["lr"] == 1e-2

    strict = search(cache, tmp_path, *SOME_DIVERGE, "hydra.sweeper.max_failure_rate=0")
    assert strict.returncode == 1
    assert "training diverged; lower lr" in strict.stderr
