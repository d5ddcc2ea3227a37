"""A process that trains the packs sent to it, with a GPU of its own where there are several."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from sae_transcoder.launch.run_pack import Pack, run_pack
from sae_transcoder.process.broken_device import EXIT_CODE, DeviceBroken
from sae_transcoder.process.stop_signal import SIGNALS, Stopped, StopSignal, held_back


class Worker:
    """The parent's side of such a process. `pack`: what it trains now; None: it is idle."""

    def __init__(self, number: int, gpu: str | None, log_path: Path | None):
        self.number, self.gpu, self.log_path = number, gpu, log_path
        self.pack: Pack | None = None
        self.start()

    def start(self) -> None:
        """Starts the process, or starts it again after it died."""
        context = multiprocessing.get_context("spawn")
        resource_tracker.ensure_running()  # before signals are blocked: it unblocks them
        self.pipe, worker_end = context.Pipe()
        self.process: BaseProcess = context.Process(target=serve, args=(worker_end, self.gpu, self.log_path), daemon=True)
        with held_back():
            self.process.start()
        worker_end.close()

    def send(self, pack: Pack) -> None:
        """Has the process train a pack."""
        if not self.process.is_alive():  # it died while idle
            self.start()
        self.pack = pack
        self.pipe.send(pack)

    def signal(self, number: int) -> None:
        """Passes a signal on to the process."""
        if self.process.pid and self.process.is_alive():
            os.kill(self.process.pid, number)


def serve(pipe: Connection, gpu: str | None, log_path: Path | None) -> None:
    """A worker's process: trains each pack it receives and sends back the errors, until the parent closes the pipe or dies, a signal stops it,
    or its GPU fails."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    if log_path is not None:  # on a terminal, the output of several processes would mix
        log = log_path.open("a", buffering=1)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sys.stdout = sys.stderr = log
    log_warnings()
    threading.Thread(target=stop_with_parent, daemon=True).start()
    # Patient: a terminal sends Ctrl-C to this process too, and the parent passes its own on.
    with StopSignal(patient=True) as stop:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        while True:
            try:
                pack = pipe.recv()
                pipe.send(run_pack(pack, stop))
            except (EOFError, BrokenPipeError):
                return
            except Stopped as stopped:
                sys.exit(128 + stopped.number)
            except DeviceBroken as broken:
                print(broken, flush=True)
                sys.exit(EXIT_CODE)


def log_warnings() -> None:
    """Prints log messages from warnings on; each run's train.log has the others too."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, force=True)
    logging.getLogger().handlers[0].setLevel(logging.WARNING)


def stop_with_parent() -> None:
    """Waits until the parent process has died, of SIGKILL for instance, and then has this process save and end."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
