"""What fits into the time there is: tasks, each a process of its own, with what it prints as a record."""

import contextlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATIENCE = 600.0  # seconds after which a task is killed where nothing says otherwise
Record = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A measurement.

    command: its process, given a folder of its own; seconds: what it is expected to take; limit: seconds after which it is killed, None: a
    multiple of that; about: what its record says of it beforehand; hindrance: why it cannot be started.
    """

    kind: str  # check, card, row or peer
    name: str
    seconds: float
    command: Callable[[Path], list[str]]
    limit: float | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    hindrance: str | None = None

    def record(self, **found: Any) -> Record:
        """What is kept of it."""
        return {"kind": self.kind, "name": self.name, **self.about, **found}


def python(script: str, *arguments: str) -> list[str]:
    """The command of a script beside this one."""
    return [sys.executable, str(Path(__file__).parent / script), *arguments]


def pace(done: Sequence[tuple[Task, float]]) -> float:
    """How many times longer than expected rows and peers took, by the median of (task, seconds); 1 where none is done."""
    ratios = [seconds / task.seconds for task, seconds in done if task.kind in ("row", "peer")]
    return statistics.median(ratios) if ratios else 1.0


def next_task(tasks: Sequence[Task], left: float, pace: float) -> Task | None:
    """The first that can be started and likely ends within `left` seconds."""
    return next((task for task in tasks if not task.hindrance and task.seconds * pace <= left), None)


def limit(task: Task, left: float, pace: float) -> float:
    """Seconds after which it is killed: its own limit, three times what it is expected to take and half a minute, or what is left."""
    usual = PATIENCE if math.isinf(left) else 3 * task.seconds * max(pace, 1) + 30
    return min(left, task.limit or usual)


def found_in(output: str) -> Record:
    """What the JSON lines of a process's output say together."""
    found: Record = {}
    for line in output.splitlines():
        if line.startswith('{"'):
            try:
                found |= json.loads(line)
            except ValueError:  # the line at which it was killed
                continue
    return found


class Running:
    """A task's process, from its start; whoever makes it asks whether it has ended, or kills it."""

    def __init__(self, task: Task, limit: float, environment: Mapping[str, str]) -> None:
        """limit: seconds after which it and what it started are killed."""
        self.task, self.limit, self.start, self.killed = task, limit, time.monotonic(), False
        self.folder = tempfile.TemporaryDirectory(prefix="gpu-", ignore_cleanup_errors=True)
        place = Path(self.folder.name)
        self.output, self.errors = place / "stdout", place / "stderr"
        with self.output.open("wb") as output, self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                task.command(place), env={**os.environ, **environment}, start_new_session=True, stdout=output, stderr=errors
            )

    def ended(self) -> bool:
        """Whether it has, by itself or by its limit."""
        if self.process.poll() is None and time.monotonic() - self.start > self.limit:
            self.killed = True
            self.kill()
        return self.process.poll() is not None

    def kill(self) -> None:
        """Kills it with all that it started."""
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def record(self) -> Record:
        """Once it has ended: what it told, its status and its seconds; where it failed the end of its errors too. Its folder is deleted."""
        seconds, output = time.monotonic() - self.start, self.output.read_text(errors="replace")
        record = self.task.record(**({"status": "done"} | found_in(output)), seconds=seconds)
        if self.task.kind == "check":
            record["said"] = output[-4000:]
        if self.process.returncode:
            record["status"] = f"killed after {self.limit:.0f} s" if self.killed else f"failed ({self.process.returncode})"
            record["error"] = self.errors.read_text(errors="replace")[-4000:]
        self.folder.cleanup()
        return record
