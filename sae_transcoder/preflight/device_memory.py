"""How much memory a device has: this machine's, or what the settings say of a cluster's; and runs that need more."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sae_transcoder import slurm_client
from sae_transcoder.config import Config
from sae_transcoder.preflight.peak import Peak

if TYPE_CHECKING:
    import torch


def here(device: torch.device) -> int:
    """Bytes of a GPU, or of this machine."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def on_cluster(cfg: Config, device: torch.device) -> int | None:
    """Bytes of a GPU of the cluster, or what a job asks for on a node; None where the settings do not say."""
    if device.type == "cuda":
        return None if cfg.gpu_memory_gib is None else int(cfg.gpu_memory_gib * 2**30)
    return None if cfg.memory is None else slurm_client.mebibytes(cfg.memory) * 2**20 // cfg.tasks_per_node


def faults(cfg: Config, needed: Peak, there: int | None, device: torch.device) -> list[str]:
    """A run that needs more than the whole of its device's memory; `there`: bytes, None where they are not known."""
    if there is None or needed.held <= there:
        return []
    parts = ", ".join(f"{what} {held / 1e9:,.1f}" for what, held in needed.parts.items())
    return [
        f"expansion_factor={cfg.expansion_factor}, num_latents={cfg.num_latents}, batch_size={cfg.batch_size}: the run needs about "
        f"{needed.held / 1e9:,.1f} GB {needed.moment} ({parts}), {device} has {there / 1e9:,.1f}; lower them, or choose fewer hookpoints"
    ]
