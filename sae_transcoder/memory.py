"""What a run needs of its device's memory, estimated from the sizes of model, coders and batches."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from sae_transcoder import ranks
from sae_transcoder.config import Config, LossFn, Optimizer, evaluation_batch

if TYPE_CHECKING:
    import torch


def latents(cfg: Config, width: int) -> int:
    """Latents of a coder on a hookpoint of this width."""
    return cfg.num_latents or width * cfg.expansion_factor


def coder_parameters(cfg: Config, width: int) -> int:
    """Parameters of one coder: encoder, decoder, their biases, and the skip connection."""
    return 2 * width * latents(cfg, width) + latents(cfg, width) + width + cfg.skip_connection * width**2


# Numbers of the size of the coder that each optimizer keeps beside weights and gradients.
OPTIMIZER_STATES = {Optimizer.adam: 2, Optimizer.muon: 1, Optimizer.signum: 1}


def memory_estimate(
    cfg: Config, widths: dict[str, int], model_bytes: int, itemsize: int, vocabulary: int, processes: int = 1
) -> dict[str, int]:
    """Bytes that the run needs on its device, or on that of each rank at most, by what holds them; temporary tensors of the largest coder
    counted once."""
    tokens = cfg.batch_size * cfg.max_seq_length
    every = {point: coder_parameters(cfg, d) * len(cfg.init_seeds) for point, d in widths.items()}
    own = max(ranks.shares(every, processes), key=lambda s: sum(every[p] for p in s)) if cfg.distribute_modules else list(widths)
    parameters, copied = sum(every[point] for point in own), sum(every.values())  # the first rank evaluates all
    sides = 2 if cfg.model_type == "transcoder" else 1
    captured = sum(tokens * widths[p] * sides * (itemsize + 4 * (itemsize != 4)) for p in own)
    # Pre-activations, with AuxK a second time, as if whole (they are where they are few, or corrections are off); input, output, error and
    # their gradients.
    step = max(tokens // cfg.micro_acc_steps * ((1 + (cfg.auxk_alpha > 0)) * latents(cfg, d) + 6 * d) * 4 for d in widths.values())
    held = {
        "language model": model_bytes,
        "coders": parameters * 4 * (2 + OPTIMIZER_STATES[cfg.optimizer]),
        "their copy at a save": copied * 4 * (2 if cfg.optimizer == Optimizer.signum else 1),
        "activations": captured + step,
    }
    if processes > 1 and not cfg.distribute_modules:
        held["gradients exchanged"] = max(coder_parameters(cfg, d) for d in widths.values()) * 4
    if cfg.loss_fn != LossFn.fvu:  # logits, their softmax, its logarithm and a gradient, float32
        held["logits"] = tokens * vocabulary * 4 * (4 if cfg.loss_fn == LossFn.kl else 2)
    elif cfg.eval_end_to_end:  # those of the model as it is and with coders; one sequence's in float64, for the divergence
        sequences = evaluation_batch(cfg, vocabulary)
        held["held-out logits"] = cfg.max_seq_length * vocabulary * (2 * itemsize * sequences + 4 * 8)
    return held


def memory_faults(cfg: Config, memory: dict[str, int], there: int | None, device: torch.device) -> list[str]:
    """A run that needs more than the whole of its device's memory; `there`: bytes, None where they are not known."""
    needed = sum(memory.values())
    if there is None or needed <= there:
        return []
    parts = ", ".join(f"{what} {held / 1e9:,.1f}" for what, held in memory.items())
    return [
        f"expansion_factor={cfg.expansion_factor}, num_latents={cfg.num_latents}, batch_size={cfg.batch_size}: the run needs about "
        f"{needed / 1e9:,.1f} GB ({parts}), {device} has {there / 1e9:,.1f}; lower them, or choose fewer hookpoints"
    ]


def device_memory(device: torch.device) -> int:
    """Bytes of a GPU, or of this machine."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cluster_memory(cfg: Config, device: torch.device) -> int | None:
    """Bytes of a GPU of the cluster, or what a job asks for on a node; None where the settings do not say."""
    if device.type == "cuda":
        return None if cfg.gpu_memory_gib is None else int(cfg.gpu_memory_gib * 2**30)
    return None if cfg.memory is None else mebibytes(cfg.memory) * 2**20 // cfg.tasks_per_node


UNITS = {"": 1.0, "K": 2.0**-10, "M": 1.0, "G": 2.0**10, "T": 2.0**20}


def mebibytes(text: str) -> int:
    """An amount of memory in sbatch's notation: a number, in MiB or with K, M, G or T. Raises ValueError for what is none."""
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", text.upper())
    if match is None:
        raise ValueError(f"{text!r}: not an amount of memory")
    return int(int(match[1]) * UNITS[match[2]])
