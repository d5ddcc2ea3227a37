"""A run that dies at a chosen moment; a module of its own for the processes that are forked from a server."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from sae_transcoder.config import Config
from sae_transcoder.training import checkpoint, engine


def train_and_die(cfg: Config, fuse: int | None) -> None:
    """Trains `cfg`; with a fuse, dies by SIGKILL just before or after the fuse-th change of a file's place."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    torch.set_num_threads(1)
    if fuse is not None:
        left = [fuse]

        def burning(real: Callable[..., object]) -> Callable[..., object]:
            def changed(*args: object, **kwargs: object) -> object:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = real(*args, **kwargs)
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return changed

        for owner, name in [(os, "replace"), (os, "fsync"), (Path, "rename"), (torch, "save"), (checkpoint.shutil, "rmtree")]:
            setattr(owner, name, burning(getattr(owner, name)))
    engine.train([cfg])
