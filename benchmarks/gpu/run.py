"""What does training cost on a GPU? Checks, time, work, launches, waits and memory at the shapes of two models, beside other programs.

    python benchmarks/gpu/run.py --minutes 8        on a GPU: what fits into eight minutes, the most important first
    python benchmarks/gpu/run.py --small            tiny shapes, here on a CPU too: whether all of it works, about 2 minutes
    python benchmarks/gpu/run.py --show FILE        the tables of an earlier call, also of one that was killed

Models of random weights in the shapes of SmolLM2-135M and Llama-3-8B, tokens as frequent as words; SAEs on the residual stream after the
middle layer. The rows are in rows.py, what is planted in plant.py, how a row is measured in measure.py. Each is a process of its own,
whose record is written at once to a JSON lines file. h100.jsonl is what an H100 gave.
"""

import argparse
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import common
from common import HERE, say
from gpu import result_tables
from gpu.checks import checks
from gpu.rows import Peer, Row, rows, shapes
from gpu.tasks import Record, Running, Task, limit, next_task, pace, python
from peers import environments


def measurement(row: Row | Peer, device: str, steps: int, peers_folder: Path, *, tiny: bool) -> Task:
    """A row, or another program on a row's work, as a task."""
    work = row if isinstance(row, Row) else row.row
    spec = {"row": asdict(work), "shape": asdict(shapes(tiny=tiny)[work.model]), "device": device, "steps": steps}
    about: dict[str, Any] = {"latents": work.latents, "runs": work.runs, "tokens": work.tokens}
    if isinstance(row, Row):
        kind, script, about, hindrance = "row", "measure.py", about | {"profiled": row.profiled}, None
    else:
        own = environments.interpreter(row.contender, peers_folder)
        kind, script, about, hindrance = "peer", "other_programs.py", about | {"against": work.name}, None if own else "missing"
        spec |= {"contender": row.contender, "python": str(own)}

    def command(folder: Path) -> list[str]:
        return python(script, json.dumps(spec | {"folder": str(folder)}))

    return Task(kind, row.name, row.seconds, command, about=about, hindrance=hindrance)


def commit() -> str:
    """The version that is measured, as git says."""
    done = subprocess.run(["git", "-C", str(HERE), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def environment(device: str) -> dict[str, str]:
    """What every task's process is told."""
    told = {"SAE_TEST_DEVICE": device, "HF_HUB_OFFLINE": "1"}
    return told | (
        {"SPARSIFY_DISABLE_TRITON": "0"} if device.startswith("cuda") else {"SPARSIFY_DISABLE_TRITON": "1", "OMP_NUM_THREADS": "1"}
    )


def measured(tasks: Sequence[Task], minutes: float | None, device: str, out: Path) -> list[Record]:
    """Runs the tasks in order as far as the time suffices, on a GPU one at a time, and writes each record at once."""
    end = math.inf if minutes is None else time.monotonic() + 60 * minutes
    at_once = 1 if device.startswith("cuda") else 2
    records: list[Record] = []
    done: list[tuple[Task, float]] = []
    left, running = list(tasks), list[Running]()
    with out.open("x") as file:

        def keep(record: Record) -> None:
            records.append(record)
            file.write(json.dumps(record) + "\n")
            file.flush()

        try:
            while True:
                there = end - time.monotonic()
                task = next_task(left, there, pace(done)) if len(running) < at_once else None
                if task:
                    left.remove(task)
                    running.append(Running(task, limit(task, there, pace(done)), environment(device)))
                elif not running:
                    break
                for own in [each for each in running if each.ended()]:
                    running.remove(own)
                    record = own.record()
                    keep(record)
                    done.append((own.task, record["seconds"]))
                    say(f"{record['seconds']:5.0f} s  {own.task.kind} {own.task.name}: {record['status']}")
                time.sleep(0.05)
        finally:
            for own in running:
                own.kill()
        for task in left:
            keep(task.record(status=task.hindrance or "not started, no time"))
    return records


def show(records: Sequence[Record]) -> None:
    """Prints the tables."""
    print(result_tables.heading(records))
    for title, headings, cells in result_tables.tables(records):
        common.show(title, headings, cells, markdown=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny shapes, on a CPU where there is no GPU")
    parser.add_argument("--minutes", type=float, help="stop by then, with what there is; none: all of it")
    parser.add_argument("--steps", type=int, help="timed optimizer steps of a row (10; with --small 2)")
    parser.add_argument(
        "--only", action="append", choices=["check", "row", "peer"], help="only this kind; the card is always measured"
    )
    parser.add_argument("--match", default="", metavar="TEXT", help="only what has this in its name")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON lines, a new file (outputs/gpu-TIME.jsonl)")
    parser.add_argument("--peers", type=Path, default=environments.DEFAULT, help="folder of the peers' environments")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the tables of these records, and measure nothing")
    asked = parser.parse_args()
    if asked.show:
        show([json.loads(line) for line in asked.show.read_text().splitlines()])
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not asked.small:
        raise SystemExit("there is no GPU here; --small runs tiny shapes on the CPU")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the process of the moment is ended too
    steps = asked.steps or (2 if asked.small else 10)
    tasks = checks(device) + [measurement(row, device, steps, asked.peers, tiny=asked.small) for row in rows(tiny=asked.small)]
    tasks = [task for task in tasks if asked.match in task.name and (not asked.only or task.kind in asked.only)]
    size = "512" if asked.small else "8192"
    card = Task("card", "the card", 15, lambda _: python("peaks.py", device, size), limit=60, about={"commit": commit()})
    out = asked.out or Path("outputs") / f"gpu-{datetime.now():%Y%m%d-%H%M%S}.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    say(f"records: {out}")
    show(measured([card, *tasks], asked.minutes, device, out))


if __name__ == "__main__":
    main()
