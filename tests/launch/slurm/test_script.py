"""The script of a job, which is shown where there is no cluster."""

import os
import subprocess
from pathlib import Path

import pytest

from helpers.sweeps import SHORT, here

ON_SLURM = ["hardware=slurm", "partition=gpu", "gres=gpu:1", "time=2:00:00", 'setup=["module load cuda"]', "dry_run=true"]


@pytest.fixture
def off_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")


@pytest.mark.parametrize("many", [False, True])
def test_off_the_cluster_a_dry_run_shows_the_script_and_writes_nothing(
    off_cluster: None, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    monkeypatch.setenv("HF_HOME", "/a folder/hf")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    shape = ["-m", "batch_size=4,8", "sweep_name=s"] if many else []
    code, printed, errors = here(*SHORT, *shape, *ON_SLURM, f"cache_dir={cache}", f"save_dir={tmp_path}/out")
    assert code == 0, errors
    script = printed.split("#!/bin/bash")[1].split("no sbatch on this machine")[0]
    for line in (
        "#SBATCH --partition=gpu",
        "#SBATCH --gres=gpu:1",
        "module load cuda",
        "export HF_HOME='/a folder/hf'",
        "export HF_HUB_OFFLINE=1",
    ):
        assert f"\n{line}\n" in script
    assert ("#SBATCH --array=0-1" in script) == many
    assert "hf_secret" not in script
    assert printed.endswith("no cluster was asked whether it would accept this\ndry run: nothing was started\n")
    assert not list(tmp_path.iterdir())


def test_a_jobs_script_sets_where_downloads_lie_whatever_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_transcoder.launch.slurm.script import ENVIRONMENT, environment_lines

    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    assert environment_lines() == []
    monkeypatch.setenv("HF_DATASETS_CACHE", "it's $HOME")
    script = "; ".join([*environment_lines(), 'echo "$HF_DATASETS_CACHE"'])
    done = subprocess.run(["/bin/bash", "-c", script], capture_output=True, text=True, env={"PATH": os.defpath})
    assert done.stdout == "it's $HOME\n"
