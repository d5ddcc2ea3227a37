"""dictionary_learning as a contender: its trainSAE and trainers, one or several on one forward. Started by single.py, grid.py and kinds.py.

Runs in an environment of its own (environments.py). Its activations come from a forward of the same Hugging Face model that ends at the hookpoint, in
place of its buffer, which runs text through nnsight and mixes; so it trains on the same batches in the same order. It logs through a process of
its own to wandb, offline, every 100 steps (each line costs it a forward of the coder). AuxK keeps its
default weight (its logging fails without), and never acts: no latent counts as dead before 10 million tokens.
"""

import os
import sys
from pathlib import Path

os.environ |= {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}

from collections.abc import Iterator
from typing import Any

import torch
from dictionary_learning.trainers import BatchTopKTrainer, TopKTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.training import trainSAE
from transformers import AutoModel

sys.path.insert(0, str(Path(__file__).parents[1]))

from contenders.meter import THRESHOLD, THRESHOLD_BATCHES, Coder, Job, Meter, deliver, job

LOG_EVERY = 100  # optimizer steps, as in its examples


class Reached(Exception):
    """The hookpoint has been computed."""


def activations(job: Job, meter: Meter) -> Iterator[torch.Tensor]:
    """The hookpoint's output for each batch, [token, d]."""
    model = AutoModel.from_pretrained(job.model, dtype=getattr(torch, job.dtype)).to(job.device).eval()
    seen: list[torch.Tensor] = []

    def hook(module: Any, given: Any, output: Any) -> None:
        seen.append(output if isinstance(output, torch.Tensor) else output[0])
        raise Reached

    model.get_submodule(job.hookpoint).register_forward_hook(hook)
    for ids in torch.from_numpy(job.ids()).split(job.batch):
        meter.start()
        try:
            with torch.no_grad():
                model(input_ids=ids.to(job.device), use_cache=False)
        except Reached:
            yield seen.pop().flatten(0, 1)


def trainer_settings(job: Job, coder: Coder) -> dict[str, Any]:
    """Its trainer's class and what differs between its classes. A running threshold begins at the half of the run, at its default of 1,000 steps
    it would never."""
    if coder.activation == "topk":
        return dict(trainer_class=TopKTrainer, threshold_start_step=job.steps)
    running = dict(threshold_start_step=job.steps // 2, threshold_beta=1 - 1 / THRESHOLD_BATCHES)
    if coder.widths is None:
        return dict(trainer_class=BatchTopKTrainer) | running
    new = [width - before for before, width in zip([0, *coder.widths], coder.widths, strict=False)]
    return dict(trainer_class=MatryoshkaBatchTopKTrainer, group_fractions=[size / coder.latents for size in new]) | running


def arrays(ae: Any) -> dict[str, torch.Tensor]:
    """The SAE as arrays."""
    running = {} if ae.threshold < 0 else {THRESHOLD: ae.threshold[None]}
    if hasattr(ae, "W_enc"):  # the nested one
        weights = {"encoder": ae.W_enc.T, "encoder_bias": ae.b_enc, "decoder": ae.W_dec}
    else:
        weights = {"encoder": ae.encoder.weight, "encoder_bias": ae.encoder.bias, "decoder": ae.decoder.weight.T}
    return {"shift": ae.b_dec, **weights, "decoder_bias": ae.b_dec} | running


def main(job: Job) -> None:
    """Trains; the schedule rises over the warmup and falls linearly to 0, as the others'."""
    meter = Meter(job.device, job.skip * len(job.coders))
    os.environ["WANDB_DIR"] = job.folder
    made: list[Any] = []

    def trainer(trainer_class: Any, **settings: Any) -> Any:
        made.append(trainer_class(**settings))
        return made[-1]

    configs = [
        dict(
            trainer=trainer,
            steps=job.steps,
            activation_dim=job.width,
            dict_size=coder.latents,
            k=coder.k,
            lr=coder.lr,
            layer=0,  # layer and lm_name are labels only
            lm_name=job.model,
            warmup_steps=job.warmup,
            decay_start=job.warmup + 1,
            **trainer_settings(job, coder),
            seed=job.seed,
            device=job.device,
            wandb_name="benchmark",
        )
        for coder in job.coders
    ]
    dtype = getattr(torch, job.dtype)
    trainSAE(
        activations(job, meter),
        configs,
        job.steps,
        use_wandb=job.wandb,
        log_steps=LOG_EVERY,
        device=job.device,
        autocast_dtype=dtype,
    )
    deliver(job, meter, [arrays(t.ae) for t in made])


if __name__ == "__main__":
    main(job())
