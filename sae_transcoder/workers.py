"""Packs one after the other in this process, or spread over processes, one for each GPU. torch is imported where a pack begins."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import Timeout
from rich.console import Console

from sae_transcoder import status
from sae_transcoder.config import Config, run_dir, run_name, signature, sweep_dir
from sae_transcoder.status import State, Status
from sae_transcoder.stop_signal import Stopped, StopSignal

if TYPE_CHECKING:
    from sae_transcoder.preflight import Plan

Pack = list[Config]
Errors = dict[Path, str | None]  # {directory of a run: why it failed; None where it is done}


def worker_count(plan: Plan) -> int:
    """Processes to use: as set, else one for each GPU that `device` leaves open, on a CPU one."""
    if plan.cfg.workers is not None:
        return plan.cfg.workers
    if plan.device.type == "cuda" and plan.device.index is None:
        import torch

        return torch.cuda.device_count()
    return 1


def run(packs: Sequence[Pack], count: int, console: Console) -> Errors:
    """Trains all packs in so many processes at a time; returns why runs failed. Raises Stopped after a signal, the states saved."""
    if min(len(packs), count) > 1:
        return spread(list(packs), min(len(packs), count), console)
    errors: Errors = {}
    for pack in packs:
        errors |= train(pack)
    return errors


def train(pack: Pack) -> Errors:
    """Trains one pack in this process."""
    from sae_transcoder import engine

    try:
        outcomes = engine.train_pack(pack)
    except Exception as error:  # of the whole pack, such as a model that cannot be loaded
        for cfg in pack:
            mark_failed(cfg, engine.why(error))
        return {run_dir(cfg): engine.why(error) for cfg in pack}
    return {
        run_dir(cfg): engine.why(outcome) if isinstance(outcome, Exception) else None
        for cfg, outcome in zip(pack, outcomes, strict=True)
    }


def mark_failed(cfg: Config, why: str) -> None:
    """Says in status.json that a run failed whose process can no longer say it; not of one that is done or goes on."""
    directory = run_dir(cfg)
    try:
        with status.lock(directory):
            found = status.read(directory) or Status(State.queued, signature(cfg))
            if found.state in (State.running, State.queued):
                found.state, found.why = State.failed, why
                status.write(directory, found)
    except Timeout:
        pass


class Worker:
    """A process that trains packs which it is sent, with a GPU of its own where there are several."""

    def __init__(self, number: int, gpu: str | None, log: Path):
        self.number, self.gpu, self.log = number, gpu, log
        self.pack: Pack | None = None
        self.start()

    def start(self) -> None:
        """Starts the process, anew if it died."""
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process: BaseProcess = context.Process(target=serve, args=(other, self.gpu, self.log), daemon=True)
        self.process.start()
        other.close()

    def send(self, pack: Pack) -> None:
        """Has it train a pack."""
        self.pack = pack
        self.pipe.send(pack)


def serve(pipe: Connection, gpu: str | None, log: Path) -> None:
    """A worker's process: trains each pack that comes, until none comes any more or a signal ends it."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    # What several processes print at once is no use on a terminal.
    out = log.open("a", buffering=1)
    os.dup2(out.fileno(), 1)
    os.dup2(out.fileno(), 2)
    sys.stdout = sys.stderr = out
    while True:
        try:
            pack = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            pipe.send(train(pack))
        except Stopped as stopped:
            sys.exit(128 + stopped.number)


def spread(packs: list[Pack], count: int, console: Console) -> Errors:
    """Trains the packs in `count` processes; a pack whose process dies is split, a run whose process dies alone has failed."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(i) for i in range(count)]
    folder = sweep_dir(packs[0][0])
    errors: Errors = {}
    total, waiting = len(packs), list(packs)
    with StopSignal() as stop:
        workers = [Worker(i, gpus[i % len(gpus)], folder / f"worker{i}.log") for i in range(count)]
        try:
            while waiting or any(worker.pack for worker in workers):
                for worker in workers:
                    if worker.pack is None and waiting and stop.number is None:
                        worker.send(waiting.pop(0))
                        names = ", ".join(run_name(cfg) for cfg in worker.pack or ())
                        console.print(f"worker {worker.number}: {names} (output: {worker.log})", markup=False, soft_wrap=True)
                busy = [worker for worker in workers if worker.pack]
                if not busy:
                    break
                ready = wait([w.pipe for w in busy] + [w.process.sentinel for w in busy], timeout=0.5)
                if stop.number is not None:
                    for worker in busy:
                        if worker.process.pid and worker.process.is_alive():
                            os.kill(worker.process.pid, stop.number)
                            worker.process.join()
                    raise Stopped(stop.number)
                for worker in busy:
                    if worker.pipe in ready or worker.process.sentinel in ready:
                        finish(worker, errors, waiting, console)
        finally:
            for worker in workers:
                worker.pipe.close()
                worker.process.join(timeout=5)
                worker.process.kill()
    console.print(f"{total} packs on {count} workers: done", markup=False)
    return errors


def finish(worker: Worker, errors: Errors, waiting: list[Pack], console: Console) -> None:
    """Takes up what became of a worker's pack."""
    pack: Pack = worker.pack or []
    worker.pack = None
    try:
        errors |= worker.pipe.recv() if worker.pipe.poll() else {}
        if all(run_dir(cfg) in errors for cfg in pack):
            return
    except EOFError:
        pass
    worker.process.join()
    code = worker.process.exitcode or 0
    why = f"its process ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}; see {worker.log}"
    console.print(f"worker {worker.number}: {why}", markup=False, soft_wrap=True)
    rest = [cfg for cfg in pack if (found := status.read(run_dir(cfg))) is None or found.state != State.done]
    errors |= dict.fromkeys(run_dir(one) for one in pack if one not in rest)
    if len(rest) == 1:
        mark_failed(rest[0], why)
        errors[run_dir(rest[0])] = why
    elif rest:
        waiting[:0] = [rest[: len(rest) // 2], rest[len(rest) // 2 :]]
    worker.start()
