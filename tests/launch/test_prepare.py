"""prepare=true: after it the same command needs no network."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.fake_hub import fake_hub
from helpers.sweeps import SHORT, here, states
from sae_transcoder.language_model.loading import DEMO

pytestmark = pytest.mark.slow


def test_what_is_prepared_trains_without_a_network(tmp_path: Path) -> None:
    settings = [*SHORT, "model_name=open/model", "k=4", f"save_dir={tmp_path}/out", f"cache_dir={tmp_path}/cache"]
    command = [sys.executable, "-m", "sae_transcoder.train", *settings]
    with fake_hub(tmp_path / "models") as hub:
        shutil.copytree(DEMO, hub.models / "open" / "model")
        environment = hub.environment(tmp_path / "home")
        done = subprocess.run([*command, "prepare=true"], capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "the same command without prepare=true runs with HF_HUB_OFFLINE=1" in done.stdout
        assert "GET /open/model/resolve/main/model.safetensors" in hub.requests
        assert not (tmp_path / "out").exists()
        hub.requests.clear()
        environment |= {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert hub.requests == []
    assert states(tmp_path / "out") == ["done"]


def test_a_sweep_is_prepared_once_and_a_dry_run_is_not_prepared(cache: Path, tmp_path: Path) -> None:
    settings = [*SHORT, f"save_dir={tmp_path}/out", f"cache_dir={cache}", "prepare=true"]
    code, printed, _ = here("-m", *settings, "k=4,8")
    assert (code, "pack 1: 2 runs" in printed, printed.count("prepared: ")) == (0, True, 1)
    assert not list(tmp_path.iterdir())
    code, _, errors = here(*settings, "dry_run=true")
    assert (code, "dry_run=True and prepare=True" in errors) == (1, True)
