"""Python programs in processes of their own that start in a moment: forks of a server that has imported torch, transformers and sparsify.

These imports take 5 s of a core in each process. A fork is a process like any other (its id, signals, output, exit code, children), except for
what is read from the environment or done by modules while they are imported: tests of that start real ones.
"""

import importlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest.mock import patch

from helpers import FINDING_TESTS

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["helpers.imported"])


def process(function: Callable[..., None], *arguments: object) -> BaseProcess:
    """A fork that calls a function of a module."""
    forked = CONTEXT.Process(target=function, args=arguments)
    with patch.dict(os.environ, FINDING_TESTS):  # by which the server finds helpers.imported
        forkserver.ensure_running()
    forked.start()
    return forked


class Forked:
    """Such a process, with what tests use of subprocess.Popen."""

    def __init__(self, words: list[str], environment: Mapping[str, str], cwd: Path | None, new_session: bool):
        """words: behind `python`: a script, `-m MODULE` of ours or `-c CODE`, and its arguments."""
        self.args = words
        self.folder = tempfile.TemporaryDirectory(prefix="forked-")
        self.files = [Path(self.folder.name) / name for name in ("stdout", "stderr")]
        given = words, dict(environment), str(cwd or Path.cwd()), [str(file) for file in self.files], new_session
        self.process = process(program, *given)

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, or minus the signal that ended it; None while it runs."""
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        """Returns the exit code. Raises TimeoutExpired."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for its end, and returns what it printed to stdout and stderr. Raises TimeoutExpired."""
        self.wait(timeout)
        out, errors = (file.read_text() if file.exists() else "" for file in self.files)
        return out, errors


def start(words: list[str], env: Mapping[str, str] = os.environ, cwd: Path | None = None, new_session: bool = False) -> Forked:
    """Starts `python WORDS`; env: all of its environment."""
    return Forked(words, env, cwd, new_session)


def run(
    words: list[str], env: Mapping[str, str] = os.environ, cwd: Path | None = None, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `python WORDS` to its end. Kills it after so many seconds, and raises TimeoutExpired."""
    process = start(words, env, cwd)
    try:
        out, errors = process.communicate(timeout)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.returncode is not None
    return subprocess.CompletedProcess(words, process.returncode, out, errors)


def program(words: list[str], environment: dict[str, str], cwd: str, files: list[str], new_session: bool) -> None:
    """What a fork does: becomes that program, and ends as it would."""
    if new_session:
        os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for descriptor, (name, file) in enumerate(zip(("stdout", "stderr"), files, strict=True), start=1):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
        setattr(sys, name, open(descriptor, "w", closefd=False, buffering=1 if name == "stderr" else -1))  # noqa: SIM115
    try:
        execute(words)
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def execute(words: list[str]) -> None:
    """Does in this process what `python WORDS` does."""
    kind, *given = words
    sys.argv = {"-m": given, "-c": ["-c", *given[1:]]}.get(kind, list(words))
    if kind == "-m":
        importlib.import_module(given[0]).main()
    elif kind == "-c":
        exec(given[0], {"__name__": "__main__"})
    else:
        runpy.run_path(kind, run_name="__main__")
