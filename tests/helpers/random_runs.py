"""Runs that are done but never ran: coders of the bundled model with random weights, of any activation, written as real ones are."""

from pathlib import Path

import torch

from helpers.sweeps import SHORT
from sae_transcoder.api import load_config
from sae_transcoder.coder.names import coder_dir
from sae_transcoder.coder.sparsify_parts import SparseCoder, SparseCoderConfig
from sae_transcoder.coder.trained_coder import TrainedCoder
from sae_transcoder.config import Activation, Config, ModelType, run_dir
from sae_transcoder.language_model import hookpoints, loading
from sae_transcoder.run_store import eval_file, run_files, status
from sae_transcoder.run_store.eval_file import CoderMetrics, Evaluation
from sae_transcoder.run_store.status import State, Status

D, LATENTS = 256, 512


def write_random_run(folder: Path, *settings: str) -> tuple[Path, dict[str, TrainedCoder]]:
    """The directory of a run with k=4, and its coders."""
    cfg = load_config(*SHORT, "k=4", f"save_dir={folder}", "run_name=random", *settings)
    directory = run_dir(cfg)
    run_files.write_config(cfg)
    status.write(directory, Status(State.done, "1a2b3c4d", 4, 4, 512, slurm_job=None))
    names = hookpoints.hookpoint_names(cfg, loading.outline(cfg))
    coders = {name: random_coder(cfg, seed) for seed, name in enumerate(names)}
    for name, coder in coders.items():
        coder.save_to_disk(directory / "coders" / coder_dir(name))
    measured = [CoderMetrics(name, name, None, D, LATENTS, cfg.k, {"fvu": 0.25, "l0": 3.9375}) for name in names]
    eval_file.write(directory, Evaluation({}, measured, step=4, tokens=512))
    return directory, coders


def random_coder(cfg: Config, seed: int) -> TrainedCoder:
    """A coder whose tensors are all random. With batchtopk and jumprelu, tens of latents fire for inputs of a few units."""
    generator = torch.Generator().manual_seed(seed)
    in_training = cfg.activation in (Activation.batchtopk, Activation.jumprelu)
    settings = SparseCoderConfig(
        activation="topk" if in_training else cfg.activation.value,
        num_latents=LATENTS,
        k=cfg.k,
        skip_connection=cfg.skip_connection,
        transcode=cfg.model_type == ModelType.transcoder,
    )
    coder = SparseCoder(D, settings).requires_grad_(False)
    for name, value in coder.named_parameters():
        value.normal_(0, 1 if name == "b_dec" else 1 / 16, generator=generator)
    threshold = None
    if in_training:
        threshold = torch.tensor([4.0]) if cfg.activation == Activation.batchtopk else 8 * torch.rand(LATENTS, generator=generator)
    return TrainedCoder.of(
        coder,
        threshold=threshold,
        trained_activation=cfg.activation.value if in_training else None,
        matryoshka_widths=cfg.matryoshka_widths,
    )
