"""How much memory a device has, here or on a cluster as the settings say, and runs that need more."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sae_transcoder import slurm_client
from sae_transcoder.config import Config
from sae_transcoder.preflight.peak import Peak

if TYPE_CHECKING:
    import torch


def here(device: torch.device) -> int:
    """Bytes of a GPU of this machine; for the CPU, of the machine's memory."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def on_cluster(cfg: Config, device: torch.device) -> int | None:
    """Bytes of a GPU of the cluster; for the CPU, of each task's share of `memory`. None where the settings do not say."""
    if device.type == "cuda":
        return None if cfg.gpu_memory_gib is None else int(cfg.gpu_memory_gib * 2**30)
    memory = slurm_client.mebibytes(cfg.memory) if cfg.memory is not None else 0  # for SLURM, memory=0 is all of a node's
    return memory * 2**20 // cfg.tasks_per_node if memory else None


def faults(cfg: Config, needed: Peak, available: int | None, device: torch.device) -> list[str]:
    """A run that needs more than all of its device's memory. available: bytes; None where they are not known."""
    if available is None or needed.total_bytes <= available:
        return []
    parts = ", ".join(f"{what} {held / 1e9:,.1f}" for what, held in needed.parts.items())
    return [
        f"expansion_factor={cfg.expansion_factor}, num_latents={cfg.num_latents}, batch_size={cfg.batch_size}: the run needs about "
        f"{needed.total_bytes / 1e9:,.1f} GB {needed.moment} ({parts}), {device} has {available / 1e9:,.1f}; lower them, or choose fewer hookpoints"
    ]
