"""Python programs in processes of their own that start in a moment: forks of a server that has imported torch, transformers and sparsify.

These imports take 5 s of a core in each process. A fork is a process like any other (its id, signals, output, exit code, children), except for
what is read from the environment or done by modules while they are imported: tests of that start real ones.
"""

import importlib
import json
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
CONTEXT.set_forkserver_preload(["helpers.before_forks"])


def process(function: Callable[..., None], *arguments: object) -> BaseProcess:
    """A fork that calls a function of a module."""
    forked = CONTEXT.Process(target=function, args=arguments)
    with patch.dict(os.environ, FINDING_TESTS):  # by which the server finds helpers.before_forks
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


class Server:
    """Runs programs with an environment that is read while modules are imported: forks of a process that has imported them with it."""

    def __init__(self, env: Mapping[str, str]):
        code = "from helpers.forked import serve; serve()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], env=dict(env) | FINDING_TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, words: list[str], env: Mapping[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
        """Runs `python WORDS` to its end; env: all of its environment, for what is read then."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with tempfile.TemporaryDirectory(prefix="forked-") as folder:
            files = [Path(folder) / name for name in ("stdout", "stderr")]
            self.process.stdin.write(json.dumps([words, dict(env), str(cwd), [str(file) for file in files], False]) + "\n")
            self.process.stdin.flush()
            code = json.loads(self.process.stdout.readline())
            return subprocess.CompletedProcess(words, code, *(file.read_text() for file in files))

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()


def serve() -> None:
    """What such a process does: forks a program for each line of its input, and answers with the exit code."""
    importlib.import_module("helpers.before_forks")
    for line in sys.stdin:
        forked = multiprocessing.get_context("fork").Process(target=program, args=json.loads(line))
        forked.start()
        forked.join()
        print(forked.exitcode, flush=True)


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
