"""What every contender's process shares, ours and the peers': the job it is given, its time and memory, and the line that it prints.

Imports nothing but numpy and torch, so that it runs in the peers' environments.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


@dataclass
class Coder:
    """One SAE to train: active latents, latents, Adam's peak learning rate; which latents fire, and widths of nested dictionaries."""

    k: int
    latents: int
    lr: float
    activation: str = "topk"  # or batchtopk
    widths: list[int] | None = None  # rising to all latents; None: one dictionary


@dataclass
class Job:
    """What a contender trains, on which tokens, and where its weights go."""

    model: str  # folder of the language model
    hookpoint: str  # module of the base model whose output is reconstructed
    width: int  # of that output
    tokens: str  # .npy, int64 [sequence, position], in the order in which they are read
    batch: int  # sequences a step
    steps: int
    warmup: int  # optimizer steps in which the rate rises from 0; it then falls linearly to 0
    coders: list[Coder]
    weights: str  # .npz to write
    folder: str  # for whatever else the contender writes
    device: str = "cpu"
    dtype: str = "float32"  # of the language model
    seed: int = 42
    log_every: int = 10  # optimizer steps
    skip: int = 0  # first steps, which are not timed
    wandb: bool = True  # whether peers log to it, offline

    def ids(self) -> np.ndarray:
        """The tokens of the run, int64 [sequence, position]."""
        return np.load(self.tokens)[: self.steps * self.batch]

    @property
    def trained_tokens(self) -> int:
        """Tokens in the whole run."""
        return self.ids().size

    def write(self, path: Path) -> Path:
        """Keeps the job for the contender's process."""
        path.write_text(json.dumps(asdict(self)))
        return path


def job() -> Job:
    """The job in the file that the command line names."""
    values = json.loads(Path(sys.argv[1]).read_text())
    return Job(**values | {"coders": [Coder(**coder) for coder in values["coders"]]})


def memory(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


@dataclass
class Meter:
    """Seconds from the first batch to the last optimizer step, and the peak memory in between, in bytes: on a GPU what torch allocated,
    else what the process held beyond what it held when the meter was made, that is after imports and before the model is loaded.

    skip: calls of optimizers after which the clock starts, in place of the first batch.
    """

    device: str
    skip: int = 0
    began: Any = None
    ended: Any = None
    cpu: tuple[float, float] = (0.0, 0.0)  # seconds of all threads at the first batch and after the last step
    peak: int = 0
    steps: int = 0  # calls of optimizers
    before: int = field(default_factory=lambda: memory("VmRSS"))

    def __post_init__(self) -> None:
        self.on_gpu = self.device.startswith("cuda")
        register_optimizer_step_post_hook(self._stepped)

    def _now(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # in place of a synchronisation after every step
        event.record()
        return event

    def start(self, *_: Any) -> None:
        """At the first batch; later calls change nothing."""
        if self.began is None and self.steps >= self.skip:
            if self.on_gpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            else:
                Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
            self.began = self._now()
            self.cpu = (time.process_time(), 0.0)

    def _stepped(self, *_: Any) -> None:
        self.steps += 1
        if self.skip:
            self.start()
        self.note()

    def note(self) -> None:
        """Training has come this far."""
        self.ended = self._now()
        self.cpu = (self.cpu[0], time.process_time())
        self.peak = torch.cuda.max_memory_allocated() if self.on_gpu else memory("VmHWM") - self.before

    def found(self) -> dict[str, float]:
        """{seconds, cpu_seconds, peak}."""
        if self.began is None or self.ended is None:
            sys.exit("no forward or no optimizer step was seen, so nothing was timed")
        if self.on_gpu:
            self.ended.synchronize()
            seconds = self.began.elapsed_time(self.ended) / 1000
        else:
            seconds = self.ended - self.began
        return {"seconds": seconds, "cpu_seconds": self.cpu[1] - self.cpu[0], "peak": self.peak}


# Of each coder: what is subtracted from the input [d], encoder [latent, d] and its bias [latent], decoder [latent, d] and its bias [d]. With
# batchtopk also `threshold` [latent] or [1], above which a latent fires.
ARRAYS = ("shift", "encoder", "encoder_bias", "decoder", "decoder_bias")
THRESHOLD = "threshold"
# Batches over which each program's running threshold averages. By default the peers' lag behind runs of a few hundred steps.
THRESHOLD_BATCHES = 10


def deliver(job: Job, meter: Meter, coders: list[dict[str, torch.Tensor]]) -> None:
    """Writes the weights, in the order of the job's coders, and prints the line of results, the last of standard output."""
    arrays = {
        f"{i}/{name}": coder[name].detach().float().cpu().contiguous().numpy()
        for i, coder in enumerate(coders)
        for name in (*ARRAYS, THRESHOLD)
        if name in coder
    }
    np.savez(job.weights, **arrays)
    found = meter.found()
    timed = job.trained_tokens * (job.steps - job.skip) // job.steps
    found["tokens_per_s"] = timed * len(coders) / found["seconds"]  # each coder's count
    print("\n" + json.dumps(found | {"weights": job.weights}), flush=True)
