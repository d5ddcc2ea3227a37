"""Runs on two ranks, which torchrun starts."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from helpers import FINDING_TESTS

ON_RANKS = Path(__file__).with_name("on_ranks.py")
SHAPE = [
    "experiment=demo", "max_seq_length=32", "eval_samples=8", "k=8", "expansion_factor=2", "threads=1", "log_every=1", "device=cpu",
]  # fmt: skip


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def torchrun(*arguments: str) -> list[str]:
    """The command that starts a Python program on two ranks."""
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}", *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | FINDING_TESTS


def on_ranks(folder: Path, packs: list[dict], **variables: str) -> tuple[int, list[list[dict]], str]:
    """Trains packs on two ranks. Returns the exit code, the results that each rank wrote for each pack, and what was printed."""
    folder.mkdir()
    (folder / "packs.json").write_text(json.dumps(packs))
    command = torchrun(str(ON_RANKS), str(folder / "packs.json"))
    process = subprocess.run(command, capture_output=True, text=True, env=environment() | variables, timeout=300)
    results = [json.loads(p.read_text()) if (p := folder / f"rank{r}.json").exists() else [] for r in (0, 1)]
    return process.returncode, results, process.stdout + process.stderr


def state(directory: Path) -> dict:
    return json.loads((directory / "status.json").read_text())
