"""What test_ranks.py starts on several ranks: trains packs one after the other in one process group.

The argument is a file of JSON, a list of packs, each {"runs": [overrides of each run], "fault": [rank, batch, what] or null}; what: an
exception's name, or a signal's. Each rank writes what became of it beside that file, rank<r>.json: for each pack the outcomes, and a
digest of the parameters after each optimizer step.
"""

import builtins
import hashlib
import json
import logging
import os
import signal
import sys
from pathlib import Path

import pretend_gpu
import torch

from sae_transcoder import engine, ranks
from sae_transcoder.composition import composed
from sae_transcoder.config import ConfigError
from sae_transcoder.run import Run
from sae_transcoder.stop_signal import Stopped


def disturb(rank: int, batch: int, what: str) -> None:
    """Has this rank fail, be killed or be signalled as it begins its `batch`-th batch."""
    real = Run.train_on

    def disturbed(self: Run, tokens: torch.Tensor, seen: dict) -> bool:
        if ranks.number() == rank and self.batch == batch:
            if what.startswith("SIG"):
                os.kill(os.getpid(), getattr(signal, what))
            else:
                raise (getattr(builtins, what, None) or getattr(torch, what))("broken on purpose")
        return real(self, tokens, seen)

    Run.train_on = disturbed  # type: ignore[method-assign]


def digest(run: Run) -> str:
    """A digest of all parameters' bits."""
    parts = [p.detach().numpy().tobytes() for coder in run.coders.values() for p in coder.parameters()]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def main(path: Path) -> None:
    logging.basicConfig(level=logging.INFO, handlers=[logging.NullHandler()])
    said: list[dict] = []
    real, step = Run.train_on, Run._optimizer_step

    def watched(self: Run) -> None:
        step(self)
        said[-1]["digests"].append(digest(self))

    Run._optimizer_step = watched  # type: ignore[method-assign]
    for pack in json.loads(path.read_text()):
        Run.train_on = real  # type: ignore[method-assign]
        if pack.get("fault"):
            disturb(*pack["fault"])
        said.append({"outcomes": [], "digests": []})
        try:
            outcomes = engine.train_pack([composed(overrides) for overrides in pack["runs"]])
            texts = [type(o).__name__ + (f": {o}" if isinstance(o, Exception) else "") for o in outcomes]
        except (Stopped, ConfigError) as ended:
            texts = [f"{type(ended).__name__}: {ended}"]
        said[-1]["outcomes"] = texts
        (path.parent / f"rank{ranks.number()}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    if "PRETEND_GPUS" in os.environ:
        pretend_gpu.install()
    main(Path(sys.argv[1]))
