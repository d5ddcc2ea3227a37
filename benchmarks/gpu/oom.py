"""A pack that is too large for the device's memory must split and end well: provoked. Started by run.py.

python benchmarks/gpu/oom.py cuda        torch may allocate a fraction of what the pack needs
python benchmarks/gpu/oom.py cpu         an error raised in packs of more than two stands for it
"""

import logging
import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from sae_transcoder.coder.corrected_coder import CorrectedCoder
from sae_transcoder.config import Config
from sae_transcoder.config.composer import composed
from sae_transcoder.training import engine, smaller_packs

RUNS, STEPS, BATCH, LENGTH = 8, 4, 8, 256
ROOM = 1.2e9  # bytes; each run's weights, gradients and moments take 0.27e9
LARGE, SMALL = 2**15, 2**10  # latents of a run, of width 256


def configs(folder: str, device: str) -> list[Config]:
    """The runs of the pack, on the demo's model and random tokens."""
    ids = np.random.default_rng(0).integers(4096, size=(STEPS * BATCH + 2) * LENGTH)
    ids.astype(np.uint32).tofile(f"{folder}/tokens.bin")
    base = ["model_type=sae", "model_name=demo", "layers=[2]", f"device={device}", "k=32", "lr=1e-3"]
    base += ["dataset_kind=memmap", f"dataset_name={folder}/tokens.bin", "tokens_dtype=uint32", f"max_seq_length={LENGTH}"]
    base += ["max_samples=null", "eval_samples=2", "eval_end_to_end=false", f"batch_size={BATCH}", "grad_acc_steps=1"]
    base += [f"max_steps={STEPS}", f"save_dir={folder}", f"save_every={STEPS}", "save_best=false"]
    base += [f"num_latents={LARGE if device.startswith('cuda') else SMALL}"]
    return [composed([*base, f"init_seeds=[{seed}]"]) for seed in range(RUNS)]


@contextmanager
def little_memory(device: str) -> Iterator[None]:
    """While it is open, the pack as a whole does not fit."""
    if device.startswith("cuda"):
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(ROOM / total)
        yield
        return
    train_batches, forward, running = smaller_packs.train_batches, CorrectedCoder.forward, 0

    def noted(model: Any, runs: Any, *rest: Any) -> Any:
        nonlocal running
        running = len(runs)
        return train_batches(model, runs, *rest)

    def refused(*arguments: Any, **named: Any) -> Any:
        if running > 2:
            raise torch.OutOfMemoryError("raised by oom.py")
        return forward(*arguments, **named)

    with patch.object(smaller_packs, "train_batches", noted), patch.object(CorrectedCoder, "forward", refused):
        yield


class Splits(logging.Handler):
    """Counts the warnings of packs that were divided."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "out of memory with" in record.getMessage()


def main(device: str) -> None:
    """Trains the pack; ends with an error where it was not divided, or a run did not end well."""
    splits = Splits()
    logging.getLogger("sae_transcoder").addHandler(splits)
    with tempfile.TemporaryDirectory() as folder, little_memory(device), redirect_stdout(sys.stderr):
        results = engine.train(configs(folder, device))
    fvu = [result.evaluation.mean()["fvu"] for result in results]
    print(
        f"{RUNS} runs that do not fit together were divided {splits.count} times; {len(fvu)} ended, held-out FVU up to {max(fvu):.3f}"
    )
    if not splits.count or len(fvu) < RUNS or not all(map(math.isfinite, fvu)):
        sys.exit("the pack was to be divided, and every run to end")


if __name__ == "__main__":
    main(sys.argv[1])
