"""The program that test_ranks.py starts on several ranks: trains packs one after the other in one process group.

Its argument is a JSON file, a list of packs, each {"runs": [overrides of each run], "fault": [rank, batch, kind, where], "slow": [seconds
by which each evaluation is delayed, timeout in seconds of a sum over ranks]}; the last two are optional. kind: the name of an exception or a
signal; where: the method of CoderTrainer before which it comes, `tasks` by default. With PRETEND_GPUS it uses simulated GPUs. Each rank
writes to rank<r>.json beside that file, for each pack, the outcomes and a digest of the parameters after each optimizer step.
"""

import builtins
import hashlib
import json
import logging
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from helpers import pretend_gpu
from sae_transcoder import distributed
from sae_transcoder.config import ConfigError
from sae_transcoder.config.composer import composed
from sae_transcoder.evaluation import heldout
from sae_transcoder.process.stop_signal import Stopped
from sae_transcoder.training import engine
from sae_transcoder.training.coder_trainer import CoderTrainer


def disturb(rank: int, batch: int, kind: str, where: str = "tasks") -> None:
    """Has this rank fail, be killed or get a signal after so many batches, before the method `where`."""
    real = getattr(CoderTrainer, where)

    def disturbed(self: CoderTrainer, *arguments: object) -> object:
        if distributed.rank() == rank and self.batch == batch:
            if kind.startswith("SIG"):
                os.kill(os.getpid(), getattr(signal, kind))
            else:
                raise (getattr(builtins, kind, None) or getattr(torch, kind))("broken on purpose")
        return real(self, *arguments)

    setattr(CoderTrainer, where, disturbed)


def slow_down(seconds: float, timeout: float) -> None:
    """Has rank 0 evaluate for longer than the others wait for its part of a sum."""
    real = heldout.measure

    def measure(*arguments: Any, **named: Any) -> Any:
        time.sleep(seconds)
        return real(*arguments, **named)

    def connect(self: distributed.Ranks, device: torch.device) -> None:
        self.data_group = self.data_group or dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))

    heldout.measure = measure
    distributed.Ranks.connect = connect  # type: ignore[method-assign]


def digest(run: CoderTrainer) -> str:
    """A digest of the bits of all parameters."""
    parts = [p.detach().numpy().tobytes() for coder in run.coders.values() for p in coder.parameters()]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def main(path: Path) -> None:
    logging.basicConfig(level=logging.INFO, handlers=[logging.NullHandler()])
    results: list[dict] = []
    real, step = CoderTrainer.tasks, CoderTrainer.after_optimizers

    def watched(self: CoderTrainer) -> None:
        step(self)
        results[-1]["digests"].append(digest(self))

    CoderTrainer.after_optimizers = watched  # type: ignore[method-assign]
    for pack in json.loads(path.read_text()):
        CoderTrainer.tasks = real  # type: ignore[method-assign]
        if pack.get("fault"):
            disturb(*pack["fault"])
        if pack.get("slow"):
            slow_down(*pack["slow"])
        results.append({"outcomes": [], "digests": []})
        try:
            outcomes = engine.train_pack([composed(overrides) for overrides in pack["runs"]])
            texts = [type(o).__name__ + (f": {o}" if isinstance(o, Exception) else "") for o in outcomes]
        except (Stopped, ConfigError) as error:
            texts = [f"{type(error).__name__}: {error}"]
        results[-1]["outcomes"] = texts
        (path.parent / f"rank{distributed.rank()}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    if "PRETEND_GPUS" in os.environ:
        pretend_gpu.install()
    main(Path(sys.argv[1]))
