"""sae-train --info: what it prints, what it leaves out, and what Hydra's option of that name still does."""

import json
from collections.abc import Mapping
from importlib.metadata import PathDistribution, version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from helpers.sweeps import here
from sae_transcoder.language_model import compilation
from sae_transcoder.preflight import machine_info
from sae_transcoder.process import code_version, installed_packages


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with 3 MiB of cached tokens, a token of the hub in the environment, and no SLURM."""
    code_version.current()  # kept for the whole process, and on the PATH below there is no git
    cache = tmp_path / "home" / ".cache" / "sae_transcoder" / "tokens"
    cache.mkdir(parents=True)
    (cache / "ids.bin").write_bytes(bytes(3 * 2**20))
    for name, value in {
        "HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_secret",
        "PATH": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("XDG_CACHE_HOME", "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def info(*arguments: str) -> Mapping[str, str]:
    """{name: fact} of what `sae-train --info` prints."""
    code, text, errors = here(*(arguments or ["--info"]))
    assert (code, errors) == (0, "")
    lines = text.splitlines()
    width = max(len(line.split("  ")[0]) for line in lines)
    assert all(line[width : width + 2] == "  " and line[width + 2] != " " for line in lines), "the facts stand below each other"
    return {line[:width].rstrip(): line[width + 2 :] for line in lines}


def test_versions_device_slurm_and_caches_are_told_in_a_line_each(user: Path) -> None:
    facts = info()
    assert facts["sae-transcoder"].startswith(f"{code_version.current()}; ")
    assert facts["torch"] == torch.__version__
    assert facts["eai-sparsify"] == version("eai-sparsify")
    assert facts["cpu"].endswith(f"; dtype float32; {compilation.machine_obstacle(torch.device('cpu')) or 'compiles'}")
    assert facts["slurm"] == "no sbatch; outside of jobs"
    assert facts["cache_dir"].startswith("~/.cache/sae_transcoder, 3 MiB, ")
    assert facts["cache_dir"].endswith(" free")
    assert facts["offline"] == "HF_HUB_OFFLINE=1"
    assert {f"extra {name}" for name in installed_packages.extras()} <= facts.keys()


def test_no_token_and_no_users_name_is_printed(user: Path) -> None:
    text = str(info())
    assert "hf_secret" not in text
    assert str(user) not in text


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo slurm 22.05.8", "slurm 22.05.8; inside job 12_3"),
        ("echo sbatch: no configuration >&2; exit 1", "sbatch fails: no configuration; inside job 12_3"),
    ],
)
def test_slurm_is_told_with_its_version_or_its_fault_and_the_job(
    script: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "sbatch").chmod(0o755)
    for name, value in {"PATH": str(tmp_path), "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}.items():
        monkeypatch.setenv(name, value)
    assert machine_info.slurm_in_words() == told


def test_a_gpu_is_told_with_its_memory_and_its_ways_and_one_that_fails_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def properties(device: torch.device) -> SimpleNamespace:
        if device.index == 1:
            raise RuntimeError("CUDA error: unknown error\nmore")
        return SimpleNamespace(name="Some GPU", major=9, minor=0)

    driver = {
        "is_available": lambda: True, "device_count": lambda: 2, "get_device_properties": properties, "is_bf16_supported": lambda **_: True,
        "mem_get_info": lambda: (60 * 2**30, 80 * 2**30), "device": lambda _: torch.device("cpu"),
    }  # fmt: skip
    for name, answer in driver.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(
        machine_info, "machine_obstacle", lambda _: compilation.CompileObstacle("there is no Triton", "install triton")
    )
    lines = dict(machine_info.gpu_lines())
    assert lines["gpus"].startswith("2; torch is built ")
    ways = "dtype bfloat16; there is no Triton; install triton"
    assert lines["cuda:0"] == f"Some GPU, compute capability 9.0, 80.0 GiB, 60.0 GiB of it free; {ways}"
    assert lines["cuda:1"] == "cannot be used: CUDA error: unknown error"


@pytest.mark.parametrize(
    ("origin", "told"),
    [
        ({"url": "file:///clone", "dir_info": {"editable": True}}, "editable"),
        ({"url": "https://me:password@git", "vcs_info": {"vcs": "git", "commit_id": "0123456789"}}, "wheel of commit 01234567"),
        ({"url": "file:///dist/some.whl", "archive_info": {}}, "wheel of a local file or folder"),
        (None, "wheel"),
    ],
)
def test_how_the_package_came_is_told_without_its_address(origin: dict | None, told: str, tmp_path: Path) -> None:
    if origin is not None:
        (tmp_path / "direct_url.json").write_text(json.dumps(origin))
    assert installed_packages.origin_in_words(PathDistribution(tmp_path)) == told


def test_extras_tell_which_of_their_packages_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed_packages, "version", {"accelerate": "1.15.0"}.__getitem__)
    monkeypatch.setattr(installed_packages, "PackageNotFoundError", KeyError)
    extras = installed_packages.extras()
    assert extras["search"] == "hydra-optuna-sweeper not installed"
    assert extras["quantization"].split(", ") == ["accelerate 1.15.0", "bitsandbytes not installed"]
    assert "dev" not in extras


@pytest.mark.parametrize("arguments", [["--info", "k=16"], ["-i", "experiment=demo"], ["-m", "--info"]])
def test_settings_beside_info_are_refused_with_what_to_write(arguments: list[str]) -> None:
    code, text, errors = here(*arguments)
    assert (code, text) == (1, "")
    assert "of this machine, not of a run" in errors
    assert "defaults-tree" in errors


def test_info_with_a_topic_is_hydras() -> None:
    code, text, _ = here("--info", "searchpath", "experiment=demo")
    assert code == 0
    assert "Config search path" in text
