"""This project as a contender: trains a job's coders as one pack and prints a line of results. Started by single.py, grid.py and kinds.py."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from contenders.meter import THRESHOLD, THRESHOLD_BATCHES, Coder, Job, Meter, deliver, job
from sae_transcoder.coder.stored_coders import THRESHOLDS, WEIGHTS
from sae_transcoder.config import Config, run_dir
from sae_transcoder.config.composer import composed
from sae_transcoder.evaluation import heldout
from sae_transcoder.language_model import forward
from sae_transcoder.preflight.plan import make_plan
from sae_transcoder.training import engine


def configs(job: Job) -> list[Config]:
    """The runs of the pack: the demo preset's data and losses (no AuxK), every position counted, nothing saved before the end."""
    base = ["experiment=demo", f"device={job.device}", f"batch_size={job.batch}", f"max_steps={job.steps}", "max_samples=null"]
    base += [
        "exclude_first_tokens=0",
        "layers=null",
        f"hookpoints=[{job.hookpoint}]",
        f"lr_warmup_steps={job.warmup}",
        f"init_seeds=[{job.seed}]",
    ]
    base += ["eval_end_to_end=false", "save_best=false", f"save_every={job.steps}", f"log_every={job.log_every}"]
    base += [f"save_dir={job.folder}/runs", f"dtype={job.dtype}"]
    return [composed([*base, *overrides(coder)]) for coder in job.coders]


def overrides(coder: Coder) -> list[str]:
    """The fields in which runs differ."""
    of_the_kind = (
        [] if coder.activation == "topk" else [f"activation={coder.activation}", f"threshold_beta={1 - 1 / THRESHOLD_BATCHES}"]
    )
    levels = [] if coder.widths is None else [f"matryoshka_widths={coder.widths}"]
    return [f"k={coder.k}", f"num_latents={coder.latents}", f"lr={coder.lr}", *of_the_kind, *levels]


def main(job: Job) -> None:
    """Trains, with time and memory taken between the first forward and the last optimizer step."""
    cfgs = configs(job)
    plan = make_plan(cfgs[0])  # imports what it needs, and tokenises
    if not np.array_equal(plan.tokens.train[: job.steps * job.batch], job.ids()):
        raise SystemExit("this project would read other tokens than the file of the benchmark holds")
    meter = Meter(job.device)
    with timed(meter):
        engine.train(cfgs)
    deliver(job, meter, [weights(cfg, job.hookpoint) for cfg in cfgs])


@contextmanager
def timed(meter: Meter, skip: int = 0, began: Callable[[], None] = lambda: None) -> Iterator[None]:
    """While it is open, the meter starts at the forward after `skip` others, when `began` is called too, and stops before the evaluation
    at the end, at the last optimizer step."""
    capture, measure, left = forward.capture, heldout.measure, skip

    def begun(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        if left == 0:
            meter.start()
            began()
        left -= 1
        return capture(*arguments, **named)

    def evaluated(*arguments: Any, **named: Any) -> Any:
        if not meter.steps:  # an optimizer that torch's hooks do not see: then copies of the coders count as well
            meter.note()
        return measure(*arguments, **named)

    with patch.object(forward, "capture", begun), patch.object(heldout, "measure", evaluated):
        yield


def weights(cfg: Config, hookpoint: str) -> dict[str, Any]:
    """A finished run's coder under the names of meter.ARRAYS."""
    folder = run_dir(cfg) / "coders" / hookpoint
    stored = load_file(folder / WEIGHTS)
    if (folder / THRESHOLDS).exists():
        stored |= load_file(folder / THRESHOLDS)
    names = {
        "shift": "b_dec",
        "encoder": "encoder.weight",
        "encoder_bias": "encoder.bias",
        "decoder": "W_dec",
        "decoder_bias": "b_dec",
        THRESHOLD: "threshold",
    }
    return {name: stored[own] for name, own in names.items() if own in stored}


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main(job())
