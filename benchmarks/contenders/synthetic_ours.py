"""This project's part of peers/synthetic.py: trains its coders as a pack on the batches of standard input.    synthetic_ours.py TASK.json"""

import sys
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from contenders.synthetic import Task, asked, keep
from sae_transcoder.config import Config
from sae_transcoder.config.composer import composed
from sae_transcoder.language_model.forward import Activations
from sae_transcoder.training.batched_training import grouped, train_on_batch
from sae_transcoder.training.coder_copies import copy_coders
from sae_transcoder.training.coder_trainer import CoderTrainer
from sae_transcoder.training.read_ahead import read_ahead

POINT = "layers.0"
SEQUENCES = 4  # into which a batch's samples are laid; nothing depends on it


def config(task: Task, kind: str, first: Tensor) -> Config:
    """A run. As in SAELens, dead latents learn with weight 1, Matryoshka's by dictionary, and gradients are clipped to norm 1 where the loss is the
    squared error of a sample: its variance in the first batch [sample, d] brings that into our units."""
    scaled = first * (task.d**0.5 / first.norm(dim=1).mean()) if kind == "jumprelu" else first
    clip = 1 / (scaled - scaled.mean(0)).pow(2).sum(1).mean().item()
    settings = ["model_type=sae", "model_name=none", "dataset_kind=memmap", "dataset_name=none", f"batch_size={SEQUENCES}"]
    settings += [f"max_seq_length={task.batch // SEQUENCES}", "grad_acc_steps=1", f"num_latents={task.latents}", f"k={task.k}"]
    settings += [
        f"lr={task.lr}",
        f"grad_clip_norm={clip}",
        "lr_schedule=constant",
        "lr_warmup_steps=0",
        f"init_seeds=[{task.seed}]",
        "exclude_first_tokens=0",
    ]
    if kind == "jumprelu":
        settings += [
            "activation=jumprelu",
            "normalize_activations=mean_norm",
            f"l0_coefficient={task.l0_coefficient}",
            "auxk_alpha=0",
        ]
        settings += [f"jumprelu_bandwidth={task.bandwidth}", f"jumprelu_init_threshold={task.init_threshold}"]
        return composed([*settings, "normalize_decoder=false", f"decoder_init_norm={task.init_norm}", "b_dec_init=zeros"])
    settings += ["activation=batchtopk", "auxk_alpha=1", f"dead_feature_threshold={task.dead_steps * task.batch}"]
    levels = [f"matryoshka_widths={task.widths}", "auxk_per_level=true"] if kind == "matryoshka" else []
    return composed([*settings, *levels])


def main(task: Task) -> None:
    """Trains."""
    torch.set_float32_matmul_precision("high")  # as in training
    batches = task.batches()
    first = next(batches)
    runs = {
        kind: CoderTrainer(config(task, kind, first), {POINT: task.d}, task.steps * SEQUENCES, torch.device(task.device))
        for kind in task.kinds
    }
    tokens = torch.zeros(SEQUENCES, task.batch // SEQUENCES, dtype=torch.long)
    groups = grouped(list(runs.values()))
    for number, x in enumerate(chain([first], batches), start=1):
        x = x.view(*tokens.shape, task.d)
        activations = {POINT: Activations(x, x)}
        read_ahead(list(runs.values()), tokens, activations)
        for group in groups:
            train_on_batch(group, tokens, activations)
        if number % 100 == 0 or number == task.steps:
            for kind, run in runs.items():
                said = ", ".join(f"{name.partition('/')[0]} {value:.4g}" for name, value in run.metrics().items())
                print(f"step {number}, {kind}: {said}", file=sys.stderr, flush=True)
    for kind, run in runs.items():
        coder = copy_coders(run)[POINT]
        arrays = {"shift": coder.b_dec, "encoder": coder.encoder.weight, "encoder_bias": coder.encoder.bias}
        keep(task, "ours", kind, arrays | {"decoder": coder.W_dec, "decoder_bias": coder.b_dec, "threshold": coder.threshold})


if __name__ == "__main__":
    main(asked())
