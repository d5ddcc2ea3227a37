"""What test_ranks.py starts on several ranks: trains packs one after the other in one process group.

The argument is a file of JSON, a list of packs, each {"runs": [overrides of each run], "fault": [rank, batch, what, where], "slow": [seconds
that each evaluation takes longer, seconds after which a sum over ranks is given up]}, the last two of which may be left out. what: an
exception's name, or a signal's; where: the method of CoderTrainer before which it comes, tasks if left out. With PRETEND_GPUS there are GPUs in
name only. Each rank writes what became of it beside that file, rank<r>.json: for each pack the outcomes, and a digest of the parameters
after each optimizer step.
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
from sae_transcoder.config.composition import composed
from sae_transcoder.evaluation import heldout
from sae_transcoder.process.stop_signal import Stopped
from sae_transcoder.training import engine
from sae_transcoder.training.coder_trainer import CoderTrainer


def disturb(rank: int, batch: int, what: str, where: str = "tasks") -> None:
    """Has this rank fail, be killed or be signalled after so many batches, before `where`."""
    real = getattr(CoderTrainer, where)

    def disturbed(self: CoderTrainer, *arguments: object) -> object:
        if distributed.rank() == rank and self.batch == batch:
            if what.startswith("SIG"):
                os.kill(os.getpid(), getattr(signal, what))
            else:
                raise (getattr(builtins, what, None) or getattr(torch, what))("broken on purpose")
        return real(self, *arguments)

    setattr(CoderTrainer, where, disturbed)


def slow_down(seconds: float, patience: float) -> None:
    """Has the first rank evaluate for longer than the others wait for its part of a sum."""
    real = heldout.measure

    def measure(*arguments: Any, **named: Any) -> Any:
        time.sleep(seconds)
        return real(*arguments, **named)

    def connect(self: distributed.Ranks, device: torch.device) -> None:
        self.data_group = self.data_group or dist.new_group(backend="gloo", timeout=timedelta(seconds=patience))

    heldout.measure = measure
    distributed.Ranks.connect = connect  # type: ignore[method-assign]


def digest(run: CoderTrainer) -> str:
    """A digest of all parameters' bits."""
    parts = [p.detach().numpy().tobytes() for coder in run.coders.values() for p in coder.parameters()]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def main(path: Path) -> None:
    logging.basicConfig(level=logging.INFO, handlers=[logging.NullHandler()])
    said: list[dict] = []
    real, step = CoderTrainer.tasks, CoderTrainer.after_optimizers

    def watched(self: CoderTrainer) -> None:
        step(self)
        said[-1]["digests"].append(digest(self))

    CoderTrainer.after_optimizers = watched  # type: ignore[method-assign]
    for pack in json.loads(path.read_text()):
        CoderTrainer.tasks = real  # type: ignore[method-assign]
        if pack.get("fault"):
            disturb(*pack["fault"])
        if pack.get("slow"):
            slow_down(*pack["slow"])
        said.append({"outcomes": [], "digests": []})
        try:
            outcomes = engine.train_pack([composed(overrides) for overrides in pack["runs"]])
            texts = [type(o).__name__ + (f": {o}" if isinstance(o, Exception) else "") for o in outcomes]
        except (Stopped, ConfigError) as ended:
            texts = [f"{type(ended).__name__}: {ended}"]
        said[-1]["outcomes"] = texts
        (path.parent / f"rank{distributed.rank()}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    if "PRETEND_GPUS" in os.environ:
        pretend_gpu.install()
    main(Path(sys.argv[1]))
