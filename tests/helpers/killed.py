"""A run that dies at a chosen moment; a module of its own for the processes that are forked from a server."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from sae_transcoder.config import Config
from sae_transcoder.training import checkpoint, engine, pack_loop


def die() -> None:
    """Ends this process as a power cut would: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_file_change(number: int) -> None:
    """Dies just before or after one of the next changes of a file's place."""
    left = [number]

    def count() -> None:
        left[0] -= 1
        if left[0] == 0:
            die()

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def changed(*args: object, **kwargs: object) -> object:
            count()
            result = real(*args, **kwargs)
            count()
            return result

        return changed

    for owner, name in [(os, "replace"), (os, "fsync"), (Path, "rename"), (torch, "save"), (checkpoint.shutil, "rmtree")]:
        setattr(owner, name, counted(getattr(owner, name)))


def die_in_batch(number: int, delay: float) -> None:
    """Dies `delay` seconds after the number-th batch from here begins."""
    left = [number]
    real = pack_loop.train_next_batch

    def counted(*args: object, **kwargs: object) -> object:
        if left[0] == 0:
            threading.Timer(delay, die).start()
        left[0] -= 1
        return real(*args, **kwargs)

    pack_loop.train_next_batch = counted


def train_and_die(cfg: Config, file_change: int | None, batch: int | None, delay: float) -> None:
    """Trains `cfg` and dies at a change of a file's place or in a batch, whichever comes first; None: at none."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    torch.set_num_threads(1)
    if file_change is not None:
        die_at_file_change(file_change)
    if batch is not None:
        die_in_batch(batch, delay)
    engine.train([cfg])
