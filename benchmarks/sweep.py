"""What does a grid of 8 runs cost? One pack of this project, its 8 runs alone, and sparsify's own Trainer 8 times.

    python benchmarks/sweep.py [steps] [repeats]     200 and 3 by default; on a GPU where there is one; prints a Markdown table

k of 8, 16, 32 and 64, expansion factors 4 and 8, SAEs on one layer of the demo model; the same sequences, learning rate and seed for
all. sparsify has no counterpart of exclude_first_tokens, which is 0 here. This project logs to metrics.jsonl; sparsify logs nowhere and
saves nothing. The time is that from the first batch's forward to the last optimizer step, without imports, loading, evaluation
and export; for runs one after the other the sum. The memory is the highest in that time: on a GPU what torch allocated; else what the process
held, less what it held once everything was imported. Each measurement has a process of its own, and the contenders take turns.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import PreTrainedModel

from sae_transcoder import engine, eval_file, heldout, language_model, preflight
from sae_transcoder.composition import composed
from sae_transcoder.config import Config, run_dir
from sae_transcoder.heldout import Subject
from sae_transcoder.preflight import Plan
from sae_transcoder.run import Run
from sae_transcoder.sparsify_config import sparsify_configs
from sae_transcoder.upstream import SparseCoder

GRID = [(k, expansion) for k in (8, 16, 32, 64) for expansion in (4, 8)]


def configs(folder: str, steps: int, *more: str) -> list[Config]:
    """The runs of the grid."""
    base = ["experiment=demo", f"max_steps={steps}", "max_samples=null", "exclude_first_tokens=0"]
    base += ["eval_end_to_end=false", "save_best=false", f"save_every={steps}", f"save_dir={folder}", *more]
    return [composed([*base, f"k={k}", f"expansion_factor={expansion}"]) for k, expansion in GRID]


@dataclass
class Meter:
    """Time in seconds and peak memory in bytes of training; for several runs one after the other the sum and the highest."""

    seconds: float = 0.0
    cpu: float = 0.0  # seconds of all threads, which hardly depend on what else the machine does
    peak: int = 0
    began: tuple[float, float] | None = None
    before: int = field(default_factory=lambda: 0 if torch.cuda.is_available() else memory("VmRSS"))

    def start(self) -> None:
        """At the first batch; what follows it changes nothing."""
        if self.began is None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            else:
                Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
            self.began = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """After the last optimizer step."""
        assert self.began is not None
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - self.began[0]
        self.cpu += time.process_time() - self.began[1]
        self.peak = max(
            self.peak, (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else memory("VmHWM")) - self.before
        )
        self.began = None


def memory(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def ours(cfgs: Sequence[Config], meter: Meter) -> list[float]:
    """Trains runs side by side; each one's held-out FVU."""
    capture, train_on, unfinished = language_model.capture, Run.train_on, len(cfgs)

    def first(*arguments: Any) -> Any:
        meter.start()
        return capture(*arguments)

    def last(run: Run, *arguments: Any) -> bool:
        nonlocal unfinished
        stepped = train_on(run, *arguments)
        unfinished -= run.done
        if run.done and not unfinished:
            meter.stop()
        return stepped

    with patch.object(language_model, "capture", first), patch.object(Run, "train_on", last):
        engine.train(cfgs)
    return [evaluation.mean()["fvu"] for cfg in cfgs if (evaluation := eval_file.read(run_dir(cfg)))]


def by_sparsify(plan: Plan, model: PreTrainedModel, meter: Meter) -> dict[str, SparseCoder]:
    """Trains one run with sparsify's Trainer on the sequences that ours reads."""
    from sparsify import Trainer

    steps = plan.length.steps
    _, train_config = sparsify_configs(plan.cfg, list(plan.widths), steps)
    ids = plan.tokens.train[: plan.length.samples].tolist()
    trainer = Trainer(train_config, Dataset.from_dict({"input_ids": ids}).with_format("torch"), model)
    trainer.save = trainer.save_best = lambda *_: None

    def stepped(*_: Any) -> None:
        nonlocal steps
        steps -= 1
        if not steps:
            meter.stop()

    (adam,) = trainer.optimizers
    adam.register_step_post_hook(stepped)
    handle = model.register_forward_pre_hook(lambda *_: meter.start())
    trainer.fit()
    handle.remove()
    assert steps == 0
    return trainer.saes


def alone(cfgs: Sequence[Config], meter: Meter) -> list[float]:
    """The same one after the other."""
    return [fvu for cfg in cfgs for fvu in ours([cfg], meter)]


def sparsify(cfgs: Sequence[Config], meter: Meter) -> list[float]:
    """The same by sparsify's Trainer."""
    found, known = [], {}
    model = language_model.load(cfgs[0], preflight.find_device(cfgs[0]))
    for cfg in cfgs:
        plan = preflight.plan(cfg, known)
        coders = by_sparsify(plan, model, meter)
        (measured,) = heldout.measure(model, [Subject(cfg, coders)], plan.tokens.heldout, whole=False)
        found += [own["fvu"] for own in measured.coders.values()]
    return found


SPARSIFY, ALONE, PACK = "sparsify's Trainer, 8 times", "this project, 8 times", "this project, one pack of 8"
EQUAL = "equal weights"
CONTENDERS: dict[str, Callable[[Sequence[Config], Meter], list[float]]] = {SPARSIFY: sparsify, ALONE: alone, PACK: ours}


def measure(name: str, folder: str, steps: int) -> dict[str, Any]:
    """One measurement, in this process."""
    cfgs = configs(folder, steps)
    preflight.plan(cfgs[0])  # imports what it needs, and tokenises
    meter = Meter()
    fvu = CONTENDERS[name](cfgs, meter)
    return {"seconds": meter.seconds, "cpu": meter.cpu, "peak": meter.peak, "fvu": fvu}


def difference(folder: str, steps: int) -> float:
    """The largest difference between the weights of one run by sparsify and by this project without corrections."""
    cfg = configs(folder, steps, "corrections=false")[-1]
    plan = preflight.plan(cfg)
    theirs = by_sparsify(plan, language_model.load(cfg, plan.device), Meter())
    ours([cfg], Meter())
    differences = [
        (value.cpu() - load_file(run_dir(cfg) / "coders" / name / "sae.safetensors")[key]).abs().max().item()
        for name, coder in theirs.items()
        for key, value in coder.state_dict().items()
    ]
    return max(differences)


def in_a_process(task: str, steps: int) -> Any:
    """What a process of its own finds out."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        done = subprocess.run([sys.executable, __file__, task, str(steps), str(out)], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{task}:\n{done.stderr}")
        return json.loads(out.read_text())


def main(steps: int, repeats: int) -> None:
    """Has the contenders take turns and prints the table."""
    apart = in_a_process(EQUAL, steps)
    on_gpu = torch.cuda.is_available()
    assert on_gpu or apart == 0, f"without corrections a run's weights differ from sparsify's by {apart}"
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for turn in range(repeats):
        for name, turns in found.items():
            turns.append(in_a_process(name, steps))
            print(f"turn {turn + 1} of {repeats}: {name}: {turns[-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
    fvus = {name: turns[0]["fvu"] for name, turns in found.items()}
    assert on_gpu or fvus[PACK] == fvus[ALONE], "a run of a pack ends as it does alone"

    where = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    title = f"{len(GRID)} runs of {steps} steps, {where}; median of {repeats}"
    headings = [title, "time", "of sparsify's", "CPU time", "peak memory", "of sparsify's", "held-out FVU, mean"]
    print(f"\n| {' | '.join(headings)} |\n|{' --- |' * len(headings)}")
    medians = {
        name: {key: statistics.median(t[key] for t in turns) for key in ("seconds", "cpu", "peak")} for name, turns in found.items()
    }
    base = medians[SPARSIFY]
    for name, own in medians.items():
        time_columns = [f"{own['seconds']:.1f} s", f"1 / {base['seconds'] / own['seconds']:.1f}", f"{own['cpu']:.1f} s"]
        memory_columns = [f"{own['peak'] / 1e6:,.0f} MB", f"1 / {base['peak'] / own['peak']:.1f}"]
        print(f"| {name} | " + " | ".join([*time_columns, *memory_columns, f"{statistics.mean(fvus[name]):.4f}"]) + " |")
    spread = {name: [t["seconds"] for t in turns] for name, turns in found.items()}
    print("\nAll times: " + "; ".join(f"{name} {', '.join(f'{s:.1f}' for s in times)} s" for name, times in spread.items()) + ".")
    most, least = (max(abs(a - b) for a, b in zip(fvus[name], fvus[PACK], strict=True)) for name in (SPARSIFY, ALONE))
    print(f"FVU: the runs of the pack differ from sparsify's by at most {most:.2g}, from those alone by {least:.1g}.")
    print(f"With corrections=false the weights of a run differ from sparsify's by {apart:.1g}.")


if __name__ == "__main__":
    match sys.argv[1:]:
        case [task, steps, out] if task in (*CONTENDERS, EQUAL):
            with tempfile.TemporaryDirectory() as folder:
                found = difference(folder, int(steps)) if task == EQUAL else measure(task, folder, int(steps))
            Path(out).write_text(json.dumps(found))
        case arguments:
            main(*map(int, arguments), *(200, 3)[len(arguments) :])
