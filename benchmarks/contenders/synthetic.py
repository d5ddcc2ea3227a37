"""What the programs of peers/synthetic.py share: the task, the batches on standard input, and the form of trained coders.

Imports nothing but numpy and torch, so that it runs in SAELens's environment.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass
class Task:
    """Coders of one width that are trained on the same batches of made-up activations, and scored."""

    folder: str  # of what the programs hand over
    model: str  # folder of the synthetic model
    small: bool  # whether that one is a small model of the same kind, to see whether all works
    kinds: list[str]  # batchtopk, matryoshka, jumprelu
    d: int
    latents: int
    k: int
    widths: list[int]  # of Matryoshka's nested dictionaries
    lr: float  # constant
    batch: int
    samples: int
    eval_samples: int
    device: str
    seed: int = 0
    # JumpReLU, on activations of a mean norm of sqrt(d), as in the benchmark's own runs; the weight is one beside the fraction of variance
    # unexplained.
    bandwidth: float = 2.0
    init_threshold: float = 0.5
    init_norm: float = 0.57735
    l0_coefficient: float = 0.3
    dead_steps: int = 1000  # optimizer steps without firing after which a latent is dead

    @property
    def steps(self) -> int:
        """Batches, each an optimizer step."""
        return self.samples // self.batch

    @property
    def batch_bytes(self) -> int:
        """Of a batch as it is handed over: float32 [sample, d]."""
        return 4 * self.batch * self.d

    def write(self) -> str:
        """Keeps it for another program; returns the file's path."""
        path = Path(self.folder) / "task.json"
        path.write_text(json.dumps(asdict(self)))
        return str(path)

    def batches(self) -> Iterator[Tensor]:
        """Those on standard input, float32 [sample, d]."""
        for _ in range(self.steps):
            read = sys.stdin.buffer.read(self.batch_bytes)
            if len(read) < self.batch_bytes:
                sys.exit("the batches ended before the run")
            yield torch.frombuffer(bytearray(read), dtype=torch.float32).view(self.batch, self.d).to(self.device)


def asked() -> Task:
    """The task in the file that the command line names."""
    return Task(**json.loads(Path(sys.argv[-1]).read_text()))


def arrays_path(task: Task, program: str, kind: str) -> Path:
    """Where a program leaves a trained coder: .npz with meter.ARRAYS and `threshold` [latent]."""
    return Path(task.folder) / f"{program}-{kind}.npz"


def keep(task: Task, program: str, kind: str, arrays: dict[str, Tensor]) -> None:
    """Leaves a trained coder."""
    np.savez(
        arrays_path(task, program, kind), **{name: v.detach().float().cpu().contiguous().numpy() for name, v in arrays.items()}
    )
