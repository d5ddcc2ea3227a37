"""Trains packs one after the other in this process, or spread over processes, one for each GPU. torch is imported where a pack begins."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from sae_transcoder.config import Hardware, run_dir, run_name, sweep_dir
from sae_transcoder.launch.crashes import MAX_CRASHES, count_crashes, restarted
from sae_transcoder.launch.run_pack import Errors, Pack, run_pack
from sae_transcoder.launch.worker import Worker
from sae_transcoder.process.stop_signal import StopSignal
from sae_transcoder.run_store import observed_status, status
from sae_transcoder.run_store.run_records import read_or_none
from sae_transcoder.run_store.status import State

if TYPE_CHECKING:
    import torch

    from sae_transcoder.preflight.plan import Plan

Crashes = dict[Path, tuple[int, float]]
"""{directory of a run: (consecutive crashes without a new checkpoint, when its checkpoint was last written)}."""


def worker_count(plan: Plan) -> int:
    """Number of processes: as set, else one for each GPU that `device` allows; 1 on a CPU and in a job of a cluster."""
    if plan.cfg.workers is not None:
        return plan.cfg.workers
    if plan.cfg.hardware == Hardware.slurm:
        return 1
    if plan.device.type == "cuda" and plan.device.index is None:
        import torch

        return torch.cuda.device_count()
    return 1


def gpus(device: torch.device) -> list[str]:
    """CUDA_VISIBLE_DEVICES for each worker in turn; empty where workers use the CPU."""
    if device.type != "cuda":
        return []
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]


def run(packs: Sequence[Pack], count: int, device: torch.device, console: Console) -> Errors:
    """Trains all packs, at most `count` at a time, and returns each failed run's error.

    Raises Stopped after a signal, once all states are saved, and DeviceBroken if the GPU of this process fails.
    """
    errors: Errors = {}
    with StopSignal() as stop:
        if min(len(packs), count) > 1:
            return spread(list(packs), min(len(packs), count), gpus(device), stop, console, sweep_dir(packs[0][0]))
        for pack in packs:
            stop.obey()
            errors |= run_pack(pack, stop)
    return errors


def spread(packs: list[Pack], count: int, gpus: Sequence[str], stop: StopSignal, console: Console, log_dir: Path | None) -> Errors:
    """Trains the packs in `count` processes, and returns each failed run's error.

    A pack whose process dies is split in two; a run whose process keeps dying counts as failed. log_dir: folder for the output of each
    process; None: they print here.
    """
    errors: Errors = {}
    crashes: Crashes = {}
    waiting = list(packs)
    workers = [
        Worker(i, gpus[i % len(gpus)] if gpus else None, None if log_dir is None else log_dir / f"worker{i}.log")
        for i in range(count)
    ]
    try:
        while waiting or any(worker.pack for worker in workers):
            if stop.number is not None:
                stop_workers(workers, stop)
            for worker in workers:
                if worker.pack is None and waiting:
                    pack = waiting.pop(0)
                    worker.send(pack)
                    names = ", ".join(run_name(cfg) for cfg in pack)
                    output = f" (output: {worker.log_path})" if worker.log_path else ""
                    console.print(f"worker {worker.number}: {names}{output}", markup=False, soft_wrap=True)
            busy = [worker for worker in workers if worker.pack]
            ready = wait([w.pipe for w in busy] + [w.process.sentinel for w in busy], timeout=0.2)
            for worker in busy:
                if worker.pipe in ready or worker.process.sentinel in ready:
                    finish_pack(worker, errors, crashes, waiting, console)
    finally:
        for worker in workers:
            worker.pipe.close()
        for worker in workers:
            worker.process.join(timeout=5)
            worker.process.kill()
    return errors


def stop_workers(workers: Sequence[Worker], stop: StopSignal) -> None:
    """Passes a signal on and waits for the busy processes to save and end. Raises Stopped."""
    assert stop.number is not None
    for worker in workers:
        worker.signal(stop.number)
    for worker in workers:
        if worker.pack:
            worker.process.join()
    stop.obey()


def finish_pack(worker: Worker, errors: Errors, crashes: Crashes, waiting: list[Pack], console: Console) -> None:
    """Adds the errors of a worker's pack to `errors`; if its process died, adds the unfinished runs to `waiting`."""
    pack, worker.pack = worker.pack or [], None
    try:
        if worker.pipe.poll():
            errors |= worker.pipe.recv()
            return
    except (EOFError, ConnectionResetError):
        pass
    worker.process.join()
    statuses = {run_dir(cfg): read_or_none(status.read, run_dir(cfg), print) for cfg in pack}
    why = reason_of_death(worker, [reported for reported in statuses.values() if reported])
    console.print(f"worker {worker.number}: {why}", markup=False, soft_wrap=True)
    done = [directory for directory, reported in statuses.items() if reported is not None and reported.state == State.done]
    errors |= dict.fromkeys(done)
    unfinished = [restarted(cfg) for cfg in pack if run_dir(cfg) not in done]
    for directory in map(run_dir, unfinished):
        saved = status.saved_at(directory)
        count, saved_before = crashes.get(directory, (0, saved))
        crashes[directory] = count_crashes(count, saved_before, saved), saved
    if len(unfinished) > 1:
        half = len(unfinished) // 2
        waiting[:0] = [unfinished[:half], unfinished[half:]]
    elif unfinished and crashes[run_dir(unfinished[0])][0] < MAX_CRASHES:
        waiting.insert(0, unfinished)
    elif unfinished:
        directory = run_dir(unfinished[0])
        observed_status.mark(directory, State.failed, f"{why}, {MAX_CRASHES} times without coming further")
        errors[directory] = why


def reason_of_death(worker: Worker, statuses: Sequence[status.Status]) -> str:
    """Why a worker's process ended: its signal or exit code, what its runs report of that, and where its output is."""
    code = worker.process.exitcode or 0
    why = f"its process ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"
    stopped = (State.interrupted, State.preempted)
    reasons = [run.why for run in statuses if run.state in stopped and run.pid == worker.process.pid]
    why += f": {reasons[0]}" if reasons else ""
    return why + (f"; see {worker.log_path}" if worker.log_path else "")
