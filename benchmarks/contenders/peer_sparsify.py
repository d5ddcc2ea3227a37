"""Plain sparsify as a contender: its Trainer on the job's first coder. Started by single.py and grid.py, in this project's environment.

The model is loaded as its command line does (no language-modelling head for the FVU); it logs to wandb, offline, every `log_every` steps (its
default is every step). AuxK is off, which is its default. Its saves come after the last step and are not timed.
"""

import os
import sys
from pathlib import Path

os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")  # it would take Triton's kernels on a CPU too; single.py sets 0 on a GPU

import torch
from datasets import Dataset
from sparsify import SparseCoderConfig, TrainConfig, Trainer
from transformers import AutoModel

sys.path.insert(0, str(Path(__file__).parents[1]))

from contenders.meter import Job, Meter, deliver, job


def main(job: Job) -> None:
    """Trains; the schedule (warmup, then linearly to 0) is sparsify's own."""
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # where it is installed, Adam would be its 8-bit one
    (coder,) = job.coders
    meter = Meter(job.device, job.skip)
    os.environ["WANDB_DIR"] = job.folder
    model = AutoModel.from_pretrained(job.model, dtype=getattr(torch, job.dtype)).to(job.device)
    config = TrainConfig(
        SparseCoderConfig(num_latents=coder.latents, k=coder.k),
        batch_size=job.batch,
        optimizer="adam",
        lr=coder.lr,
        lr_warmup_steps=job.warmup,
        hookpoints=[job.hookpoint],
        init_seeds=[job.seed],
        save_every=job.steps + 2,
        save_dir=job.folder,
        run_name="sparsify",
        log_to_wandb=job.wandb,
        wandb_log_frequency=job.log_every,
    )
    trainer = Trainer(config, Dataset.from_dict({"input_ids": job.ids()}).with_format("torch"), model)
    model.register_forward_pre_hook(meter.start)
    trainer.fit()
    sae = trainer.saes[job.hookpoint]
    if sae.cfg.normalize_decoder:  # as it does before every use
        sae.set_decoder_norm_to_unit_norm()
    encoder = {"shift": sae.b_dec, "encoder": sae.encoder.weight, "encoder_bias": sae.encoder.bias}
    deliver(job, meter, [encoder | {"decoder": sae.W_dec, "decoder_bias": sae.b_dec}])


if __name__ == "__main__":
    main(job())
