"""Runs on two ranks, which torchrun's agent starts."""

import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args

from helpers import HANGS, forked
from helpers.forked import Forked
from helpers.ports import free_port

ON_RANKS = Path(__file__).with_name("on_ranks.py")
SHAPE = [
    "experiment=demo", "max_seq_length=32", "eval_samples=4", "k=8", "expansion_factor=2", "threads=1", "log_every=1", "device=cpu",
]  # fmt: skip


def torchrun(*arguments: str) -> list[str]:
    """The command that starts a Python program on two ranks."""
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}", *arguments]


def start_ranks(words: list[str], env: Mapping[str, str] = os.environ) -> Forked:
    """Starts `torchrun WORDS` on two ranks, all of them forks: torchrun itself, and by its agent the ranks."""
    return forked.start(["-m", "helpers.torchrun", json.dumps(words)], env)


def main() -> None:
    """Does in this process what torchrun does, but that it starts ranks as forks of itself, in which nothing is imported anew."""
    config, _, _ = config_from_args(parse_args([*torchrun()[3:], "program"]))
    elastic_launch(replace(config, start_method="fork"), one_rank)(json.loads(sys.argv[1]))


def one_rank(words: list[str]) -> None:
    """A rank's process."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):  # as in a process of its own: the agent has handlers
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        forked.execute(words)
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def on_ranks(folder: Path, packs: list[dict], **variables: str) -> tuple[int, list[list[dict]], str]:
    """Trains packs on two ranks. Returns the exit code, the results that each rank wrote for each pack, and what was printed."""
    folder.mkdir()
    (folder / "packs.json").write_text(json.dumps(packs))
    process = start_ranks([str(ON_RANKS), str(folder / "packs.json")], os.environ | variables)
    printed = "".join(process.communicate(timeout=HANGS))
    results = [json.loads(p.read_text()) if (p := folder / f"rank{r}.json").exists() else [] for r in (0, 1)]
    return process.wait(), results, printed


def state(directory: Path) -> dict:
    return json.loads((directory / "status.json").read_text())
