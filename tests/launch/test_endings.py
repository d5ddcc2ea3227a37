"""How sae-train ends: one message for each kind of error, and nothing of Hydra's before it."""

import errno
import sys
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException

from helpers.sweeps import SHORT, here
from sae_transcoder import api, evaluate, export
from sae_transcoder.config import ConfigError
from sae_transcoder.distributed import PeerFailed
from sae_transcoder.launch.endings import RunFailed
from sae_transcoder.launch.sweep import Result
from sae_transcoder.process.broken_device import DeviceBroken
from sae_transcoder.process.stop_signal import Stopped
from sae_transcoder.run_store.checked_files import DamagedFile
from sae_transcoder.training import engine
from sae_transcoder.training.checkpoint import DiskError
from sae_transcoder.training.divergence import Diverged

FULL = OSError(errno.ENOSPC, "No space left on device", "/disk/file")
ENDS: list[tuple[BaseException, int, str]] = [
    (ConfigError("what is wrong; the fix"), 1, "error: what is wrong; the fix"),
    (DamagedFile("file: cannot be read (empty); the fix"), 1, "error: file: cannot be read (empty); the fix"),
    (DiskError("disk; the fix"), 1, "error: disk; the fix"),
    (Diverged("it diverged"), 1, "error: it diverged"),
    (RunFailed("a run failed"), 1, "error: a run failed"),
    (HydraException("Hydra's reason"), 1, "error: Hydra's reason"),
    (FULL, 1, "error: /disk/file: No space left on device; free space and start the same command again"),
    (DeviceBroken("the GPU failed"), 1, "; the same command goes on from the last save"),
    (PeerFailed("a rank is gone"), 1, "error: a rank is gone"),
    (KeyboardInterrupt(), 130, "stopped before anything was trained; what was tokenised is kept"),
    (Stopped(15), 143, "; the same command goes on from here"),
]


@pytest.mark.parametrize(("error", "code", "message"), ENDS, ids=lambda value: type(value).__name__)
def test_a_failed_run_is_told_in_one_line_without_hydras(
    error: BaseException, code: int, message: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(engine, "train", fail)
    ended, _, errors = here(*SHORT, "k=4", "layers=[1]", f"save_dir={tmp_path}", f"cache_dir={cache}")
    assert ended == code
    assert message in errors
    lines = [line for line in errors.splitlines() if not line.startswith("tokenising")]  # which is told where it takes long
    assert len(lines) == 1, errors


def test_a_bug_keeps_its_traceback(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(engine, "train", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        here(*SHORT, "k=4", "layers=[1]", f"save_dir={tmp_path}", f"cache_dir={cache}")


def test_a_failed_job_is_raised_to_a_search_without_a_line_of_hydras(capsys: pytest.CaptureFixture) -> None:
    job = Result(overrides=["k=4"], status=JobStatus.FAILED)
    job._return_value = RunFailed("out/run: diverged")
    with pytest.raises(RunFailed, match="diverged"):
        _ = job.return_value
    assert capsys.readouterr().err == ""
    assert isinstance(job, JobReturn)


def test_an_interval_without_a_search_is_refused_from_python_too() -> None:
    with pytest.raises(ConfigError, match=r"lr=interval\(1,2\): only a sweeper that searches takes an interval"):
        api.sweep("experiment=demo", "lr=interval(1,2)")


@pytest.mark.parametrize(
    ("error", "code", "said"), [(FULL, 1, "free space and start the same command again"), (KeyboardInterrupt(), 130, "stopped; ")]
)
@pytest.mark.parametrize("name", ["sae-eval", "sae-export"])
def test_commands_for_trained_coders_end_with_one_line_at_a_full_disk_and_at_ctrl_c(
    name: str, error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(evaluate, "evaluate", fail)
    monkeypatch.setattr(export, "push", fail)
    monkeypatch.setattr(sys, "argv", [name, "outputs/run", *(["to=hub", "push=me/saes"] if name == "sae-export" else [])])
    with pytest.raises(SystemExit) as stop:
        (export if name == "sae-export" else evaluate).main()
    assert stop.value.code == code
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
