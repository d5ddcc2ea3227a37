"""The device that a run computes on."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from sae_transcoder import distributed, slurm_client
from sae_transcoder.config import Config, ConfigError, Hardware

if TYPE_CHECKING:
    import torch


def torch_device(cfg: Config) -> torch.device:
    """The device as set, else cuda where there is one, else the CPU. Raises ConfigError for one that torch or sparsify do not know."""
    import torch

    name = ("cuda" if torch.cuda.is_available() else "cpu") if cfg.device is None else cfg.device
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{device_settings(cfg, name)}: torch knows no such device; use cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{device_settings(cfg, name)}: sparsify runs on cpu and cuda only; choose one of these")
    return device


def find_device(cfg: Config) -> torch.device:
    """The device on this machine, as `torch_device` names it; of several ranks this rank's own GPU.

    Raises ConfigError also for a GPU that is not there.
    """
    import torch

    device = torch_device(cfg)
    if device.type != "cuda":
        return device
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if distributed.world_size() > 1:
        device = rank_device(device, num_gpus, device_settings(cfg, str(device)))
    if (device.index or 0) >= num_gpus:
        present, fix = (f"cuda:0 to cuda:{num_gpus - 1}", "choose one of these, or") if num_gpus else ("no GPU", "use")
        job = slurm_client.current_job()
        machine = f"{socket.gethostname()}, the node of SLURM job {job}," if job else "this machine"
        settings = device_settings(cfg, str(device))
        raise ConfigError(f"{settings}: not present; {machine} has {present}; {fix} hardware=cpu")
    return device


def rank_device(device: torch.device, num_gpus: int, settings: str) -> torch.device:
    """The GPU of this rank, where several ranks train together.

    settings: those that choose the device, for messages. Raises ConfigError for one GPU for all ranks, or fewer GPUs than ranks.
    """
    import torch

    if device.index is not None:
        raise ConfigError(f"{settings} with {distributed.world_size()} ranks: each has a GPU of its own; write device=cuda")
    index = 0 if num_gpus == 1 else distributed.local_rank()  # a launcher may show each rank its own GPU only
    if 0 < num_gpus <= index:
        raise ConfigError(f"{settings}: this machine has {num_gpus} GPUs for more ranks; start as many ranks as there are GPUs")
    return torch.device("cuda", index)


def device_settings(cfg: Config, device: str) -> str:
    """The settings that choose the device, for messages."""
    return f"hardware={cfg.hardware}, device={device}" if cfg.hardware != Hardware.auto else f"device={device}"
