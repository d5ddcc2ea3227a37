"""How long do very many tiny runs take beside their training? One command of 200 runs of two steps, and where its time goes.

    python benchmarks/ourselves/many.py [runs]               200 by default; prints a Markdown table
    python benchmarks/ourselves/many.py [runs] --profile     and the functions that took longest, by cProfile, which slows all of it

The command is `sae-train -m experiment=demo k=range(..) lr=..,..`, in a process of its own and a temporary folder, on the CPU: one pack.
Each line of the table is the time inside a function, less that inside the other functions of the table that it calls.
"""

import contextlib
import cProfile
import importlib
import json
import pstats
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TRAINING = "training of the coders"
# {what the time goes into: the functions that do it}
PARTS = {
    TRAINING: ["training.batched_training:train_on_batch"],
    "forward of the language model": ["language_model.forward:capture"],
    "held-out metrics": ["evaluation.heldout:measure"],
    "jobs composed": ["launch.sweep:compose_sweep"],
    "jobs checked": ["launch.sweep:plan_jobs"],
    "runs planned, by the check and by the pack": ["launch.checks:make_plan", "training.engine:make_plan"],
    "jobs queued": ["launch.sweep:write_sweep_files"],
    "packs": ["launch.packs:group_into_packs"],
    "table and results": ["launch.sweep:print_table", "launch.sweep:result"],
    "headers": ["preflight.header:print_header", "preflight.header:facts"],
    "language model loaded": ["language_model.loading:load"],
    "copies of the coders": ["training.coder_copies:copy_coders"],
    "runs made": ["training.managed_run:ManagedRun.__init__"],
    "runs opened": ["training.managed_run:ManagedRun.open"],
    "coders/ and best/": ["training.checkpoint:export"],
    "eval.json": ["run_store.eval_file:write"],
    "metrics.jsonl": ["trackers.logbook:Logbook.log"],
    "status.json": ["run_store.status:write"],
    "runs closed": ["training.managed_run:ManagedRun.close"],
}
REST = "imports, Hydra and the rest"


class Clock:
    """Time by part, each without the parts inside it."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.open = [REST]
        self.since = time.perf_counter()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What happens while it is open belongs to `name`."""
        self.switch()
        self.calls[name] += 1
        self.open.append(name)
        try:
            yield
        finally:
            self.switch()
            self.open.pop()

    def switch(self) -> None:
        """Books the time since the last switch."""
        now = time.perf_counter()
        self.spent[self.open[-1]] += now - self.since
        self.since = now

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time booked."""

        def called(*arguments: Any, **named: Any) -> Any:
            with self.part(name):
                return function(*arguments, **named)

        return called


def settings(runs: int) -> list[str]:
    """The command's overrides: values of k, as many as it takes with four rates, on the smallest coder."""
    fixed = ["experiment=demo", "hardware=cpu", "expansion_factor=1", "max_steps=2", "max_samples=null", "eval_samples=2"]
    return [*fixed, f"k=range(1,{runs // 4 + 1})", "lr=1e-3,3e-3,1e-2,3e-2"]


def command(out: Path, profile: Path | None, arguments: list[str]) -> None:
    """sae-train with a clock, in this process."""
    clock = Clock()
    for name, places in PARTS.items():
        for place in places:
            module, _, path = place.partition(":")
            holder, function = importlib.import_module(f"sae_transcoder.{module}"), path.split(".")
            for part in function[:-1]:
                holder = getattr(holder, part)
            setattr(holder, function[-1], clock.timed(name, getattr(holder, function[-1])))
    from sae_transcoder import train

    sys.argv = ["sae-train", *arguments]
    with cProfile.Profile() if profile else contextlib.nullcontext() as profiler:
        train.main()
    if profiler:
        profiler.dump_stats(profile)
    clock.switch()
    out.write_text(json.dumps({"spent": clock.spent, "calls": clock.calls}))


def main(runs: int, *, profiling: bool) -> None:
    """Runs the command and prints where its time went."""
    with tempfile.TemporaryDirectory() as folder:
        out, profile = Path(folder) / "spent.json", Path(folder) / "profile"
        call = [
            sys.executable,
            __file__,
            "--command",
            str(out),
            str(profile if profiling else ""),
            *settings(runs),
            f"save_dir={folder}/runs",
        ]
        start = time.perf_counter()
        done = subprocess.run(call, capture_output=True, text=True)
        total = time.perf_counter() - start
        if done.returncode:
            sys.exit(done.stdout[-2000:] + done.stderr)
        finished = len(list(Path(folder).rglob("eval.json")))
        assert finished == runs, f"{finished} of {runs} runs are done"
        found = json.loads(out.read_text())
        spent, calls = Counter(found["spent"]), found["calls"]
        spent[REST] = total - sum(seconds for name, seconds in spent.items() if name != REST)
        print(f"{runs} runs of 2 steps: {total:.1f} s, of which {spent[TRAINING]:.1f} s are training;", end=" ")
        print(
            f"{(total - spent[TRAINING]) / runs * 1000:.0f} ms a run beyond it\n\n| part | time | a run | calls |\n| --- | --- | --- | --- |"
        )
        for name, seconds in spent.most_common():
            print(f"| {name} | {seconds:.2f} s | {seconds / runs * 1000:.1f} ms | {calls.get(name, 1)} |")
        if profiling:
            pstats.Stats(str(profile)).sort_stats("tottime").print_stats(25).sort_stats("cumulative").print_stats(60)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--command", out, profile, *arguments]:
            command(Path(out), Path(profile) if profile else None, ["-m", *arguments])
        case arguments:
            numbers = [int(a) for a in arguments if a != "--profile"]
            main(*(numbers or [200]), profiling="--profile" in arguments)
