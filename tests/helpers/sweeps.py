"""Sweeps of tiny runs on the bundled model, as commands in this process or in one of their own."""

import contextlib
import io
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import yaml

from helpers import forked
from helpers.device import ON_DEVICE
from helpers.forked import Forked
from helpers.short_runs import weights
from sae_transcoder import train
from sae_transcoder.run_store import eval_file, status

SHAPE = ["experiment=demo", "batch_size=4", "max_seq_length=32", "eval_samples=4", "threads=1", "log_every=5", *ON_DEVICE]
SHORT = [*SHAPE, "max_samples=64", "expansion_factor=2"]


def here(*arguments: str) -> tuple[int, str, str]:
    """Runs `sae-train ARGUMENTS` in this process: its exit code, stdout and stderr."""
    out, errors, root = io.StringIO(), io.StringIO(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    for logger in (root, logging.getLogger("hydra")):  # what an earlier command left, whose output is closed
        logger.handlers[:] = [
            handler for handler in logger.handlers if not getattr(getattr(handler, "stream", None), "closed", False)
        ]
    with patch.object(sys, "argv", ["sae-train", *arguments]), contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            train.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
    assert "Traceback" not in errors.getvalue(), errors.getvalue()
    return code, out.getvalue(), errors.getvalue()


def command(*arguments: str) -> list[str]:
    """The command line `sae-train ARGUMENTS`."""
    return [sys.executable, "-m", "sae_transcoder.train", *arguments]


def start(*arguments: str, env: Mapping[str, str] = os.environ, new_session: bool = False) -> Forked:
    """Starts `sae-train ARGUMENTS` in a process of its own."""
    return forked.start(["-m", "sae_transcoder.train", *arguments], env, new_session=new_session)


def run(*arguments: str, env: Mapping[str, str] = os.environ) -> subprocess.CompletedProcess[str]:
    """Runs `sae-train ARGUMENTS` in a process of its own."""
    return forked.run(["-m", "sae_transcoder.train", *arguments], env)


def runs(folder: Path) -> dict[str, Path]:
    """{run_name: directory} of all runs below a folder."""
    directories = [Path(path) for path, _, files in os.walk(folder) if status.NAME in files]  # other folders may vanish meanwhile
    return {directory.name: directory for directory in sorted(directories)}


def states(folder: Path) -> list[str]:
    """The states of all runs below a folder, in the order of their names."""
    return [str(status.read(directory).state) for directory in runs(folder).values()]


def config(directory: Path) -> dict:
    """The contents of a run's .hydra/config.yaml."""
    return yaml.safe_load((directory / ".hydra" / "config.yaml").read_text())


def by(folder: Path, name: str) -> dict:
    """{value of a field: directory} of the runs below a folder."""
    return {config(directory)[name]: directory for directory in runs(folder).values()}


def assert_equal(one: Path, other: Path) -> None:
    """Two runs are the same bit for bit: coders, best coders, metrics and held-out metrics."""
    for part in ("coders", "best"):
        first, second = weights(one / part), weights(other / part)
        assert first.keys() == second.keys()
        assert first
        assert all(bool((value == second[name]).all()) for name, value in first.items()), part
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert eval_file.read(one) == eval_file.read(other)


def assert_all_equal(one: Path, other: Path) -> None:
    """The runs below two folders have the same names and are the same bit for bit."""
    assert runs(one).keys() == runs(other).keys()
    for name, directory in runs(one).items():
        assert_equal(directory, runs(other)[name])


def living_in(folder: Path) -> list[int]:
    """Ids of the processes that hold a file below a folder open."""
    pids = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            with contextlib.suppress(OSError):
                if any(str(folder) in os.readlink(link) for link in (process / "fd").iterdir()):
                    pids.append(int(process.name))
    return pids
