"""Packs one after the other in this process, or spread over processes, one for each GPU. torch is imported where a pack begins."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from sae_transcoder.config import Config, Hardware, Resume, run_dir, run_name, sweep_dir
from sae_transcoder.distributed import PeerFailed
from sae_transcoder.process.broken_device import EXIT_CODE, DeviceBroken
from sae_transcoder.process.stop_signal import SIGNALS, Stopped, StopSignal, held_back
from sae_transcoder.run_store import observed_status, status
from sae_transcoder.run_store.status import State

if TYPE_CHECKING:
    import torch

    from sae_transcoder.preflight.plan import Plan

Pack = list[Config]
Errors = dict[Path, str | None]  # {directory of a run: why it failed; None where it is done}


def worker_count(plan: Plan) -> int:
    """Processes to use: as set, else one for each GPU that `device` leaves open, on a CPU one; in a job of a cluster it is one."""
    if plan.cfg.workers is not None:
        return plan.cfg.workers
    if plan.cfg.hardware == Hardware.slurm:
        return 1
    if plan.device.type == "cuda" and plan.device.index is None:
        import torch

        return torch.cuda.device_count()
    return 1


def run(packs: Sequence[Pack], count: int, device: torch.device, console: Console) -> Errors:
    """Trains all packs in so many processes at a time; returns why runs failed. Raises Stopped after a signal, the states saved, and, in
    one process, DeviceBroken."""
    errors: Errors = {}
    with StopSignal() as stop:
        if min(len(packs), count) > 1:
            return spread(list(packs), min(len(packs), count), gpus(device), stop, console, sweep_dir(packs[0][0]))
        for pack in packs:
            stop.obey()
            errors |= train(pack, stop)
    return errors


def gpus(device: torch.device) -> list[str]:
    """What CUDA_VISIBLE_DEVICES is for each worker in turn; nothing where they use the CPU."""
    if device.type != "cuda":
        return []
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]


def train(pack: Pack, stop: StopSignal) -> Errors:
    """Trains one pack in this process. Raises Stopped after a signal, DeviceBroken where the GPU fails, PeerFailed where that of another rank
    did or the rank is gone: the runs are left for another process."""
    from sae_transcoder.training import engine, failure, out_of_memory
    from sae_transcoder.training.managed_run import RunClaimed

    try:
        outcomes = engine.train_pack(pack, stop)
    except Exception as error:  # of the whole pack, such as a model that cannot be loaded
        if isinstance(error, PeerFailed) and error.blameless:
            raise
        why = failure.why(error)
        for cfg in pack:
            observed_status.mark(run_dir(cfg), State.failed, why)
        return {run_dir(cfg): why for cfg in pack}
    finally:
        out_of_memory.free_memory()
    errors: Errors = {}
    for cfg, outcome in zip(pack, outcomes, strict=True):
        errors[run_dir(cfg)] = None
        if isinstance(outcome, RunClaimed):
            print(outcome, flush=True)
        elif isinstance(outcome, Exception):
            errors[run_dir(cfg)] = why = failure.why(outcome)
            observed_status.mark(run_dir(cfg), State.failed, why)  # where it had not begun
    return errors


class Worker:
    """A process that trains packs which it is sent, with a GPU of its own where there are several."""

    def __init__(self, number: int, gpu: str | None, log: Path | None):
        self.number, self.gpu, self.log = number, gpu, log
        self.pack: Pack | None = None
        self.start()

    def start(self) -> None:
        """Starts the process, anew if it died."""
        context = multiprocessing.get_context("spawn")
        resource_tracker.ensure_running()  # before the signals are held back, for it lets them through
        self.pipe, other = context.Pipe()
        self.process: BaseProcess = context.Process(target=serve, args=(other, self.gpu, self.log), daemon=True)
        with held_back():
            self.process.start()
        other.close()

    def send(self, pack: Pack) -> None:
        """Has it train a pack."""
        if not self.process.is_alive():  # it died idle
            self.start()
        self.pack = pack
        self.pipe.send(pack)

    def signal(self, number: int) -> None:
        """Hands a signal on."""
        if self.process.pid and self.process.is_alive():
            os.kill(self.process.pid, number)


def serve(pipe: Connection, gpu: str | None, log: Path | None) -> None:
    """A worker's process: trains each pack that comes, until none comes any more, a signal ends it, its GPU fails, or its parent is gone."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    if log is not None:  # what several processes print at once is no use on a terminal
        out = log.open("a", buffering=1)
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        sys.stdout = sys.stderr = out
    log_warnings()
    threading.Thread(target=end_with_parent, daemon=True).start()
    # Patient: the parent hands on a Ctrl-C that the terminal has sent here as well.
    with StopSignal(patient=True) as stop:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        while True:
            try:
                pack = pipe.recv()
                pipe.send(train(pack, stop))
            except (EOFError, BrokenPipeError):
                return
            except Stopped as stopped:
                sys.exit(128 + stopped.number)
            except DeviceBroken as broken:
                print(broken, flush=True)
                sys.exit(EXIT_CODE)


def log_warnings() -> None:
    """Prints what is logged from warnings on; the rest is in each run's train.log."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, force=True)
    logging.getLogger().handlers[0].setLevel(logging.WARNING)


def end_with_parent() -> None:
    """Waits until the parent has died, by SIGKILL say, and has this process save and end."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def spread(packs: list[Pack], count: int, gpus: Sequence[str], stop: StopSignal, console: Console, logs: Path | None) -> Errors:
    """Trains the packs in `count` processes; a pack whose process dies is split, a run whose process keeps dying alone has failed.

    logs: folder for what each process prints; None: it is printed here.
    """
    errors: Errors = {}
    deaths: Deaths = {}
    waiting = list(packs)
    workers = [
        Worker(i, gpus[i % len(gpus)] if gpus else None, None if logs is None else logs / f"worker{i}.log") for i in range(count)
    ]
    try:
        while waiting or any(worker.pack for worker in workers):
            if stop.number is not None:
                for worker in workers:
                    worker.signal(stop.number)
                for worker in workers:
                    if worker.pack:
                        worker.process.join()
                stop.obey()
            for worker in workers:
                if worker.pack is None and waiting:
                    pack = waiting.pop(0)
                    worker.send(pack)
                    names = ", ".join(run_name(cfg) for cfg in pack)
                    where = f" (output: {worker.log})" if worker.log else ""
                    console.print(f"worker {worker.number}: {names}{where}", markup=False, soft_wrap=True)
            busy = [worker for worker in workers if worker.pack]
            ready = wait([w.pipe for w in busy] + [w.process.sentinel for w in busy], timeout=0.2)
            for worker in busy:
                if worker.pipe in ready or worker.process.sentinel in ready:
                    finish(worker, errors, deaths, waiting, console)
    finally:
        for worker in workers:
            worker.pipe.close()
        for worker in workers:
            worker.process.join(timeout=5)
            worker.process.kill()
    return errors


Deaths = dict[Path, tuple[int, float]]
"""{directory of a run: how often its process died in a row without a save of its state, and when that was written last}."""


def finish(worker: Worker, errors: Errors, deaths: Deaths, waiting: list[Pack], console: Console) -> None:
    """Takes up what became of a worker's pack."""
    pack, worker.pack = worker.pack or [], None
    try:
        if worker.pipe.poll():
            errors |= worker.pipe.recv()
            return
    except (EOFError, ConnectionResetError):
        pass
    worker.process.join()
    code = worker.process.exitcode or 0
    why = f"its process ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"
    states = {run_dir(cfg): status.read(run_dir(cfg)) for cfg in pack}
    stopped = (State.interrupted, State.preempted)
    said = [found.why for found in states.values() if found and found.state in stopped and found.pid == worker.process.pid]
    why += f": {said[0]}" if said else ""
    why += f"; see {worker.log}" if worker.log else ""
    console.print(f"worker {worker.number}: {why}", markup=False, soft_wrap=True)
    done = [directory for directory, found in states.items() if found is not None and found.state == State.done]
    errors |= dict.fromkeys(done)
    # With resume=never a run that was begun is refused; here it is the same attempt that goes on.
    rest = [replace(cfg, resume=Resume.auto) for cfg in pack if run_dir(cfg) not in done]
    for cfg in rest:
        saved = status.saved_at(run_dir(cfg))
        count, before = deaths.get(run_dir(cfg), (0, saved))
        deaths[run_dir(cfg)] = (count + 1 if saved == before else 1, saved)
    if len(rest) > 1:
        waiting[:0] = [rest[: len(rest) // 2], rest[len(rest) // 2 :]]
    elif rest and deaths[run_dir(rest[0])][0] < observed_status.TRIES:
        waiting.insert(0, rest)
    elif rest:
        observed_status.mark(run_dir(rest[0]), State.failed, f"{why}, {observed_status.TRIES} times without coming further")
        errors[run_dir(rest[0])] = why
