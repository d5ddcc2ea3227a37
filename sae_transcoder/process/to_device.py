"""Copies between host and device that wait for the device at most once. torch is imported where they begin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def copy_to_device(device: torch.device, values: Tensor) -> Tensor:
    """Copies `values` to `device`; from the host to a GPU asynchronously, through pinned memory."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" and not values.is_cuda else values.to(device)


def true_indices(masks: Sequence[Tensor]) -> list[Tensor]:
    """The indices at which each mask [position] is true, in order. Waits for a GPU once for all masks, to read the results' sizes."""
    import torch

    counts = torch.stack([mask.sum() for mask in masks]).tolist() if masks else []
    return [torch.nonzero_static(mask, size=count)[:, 0] for mask, count in zip(masks, counts, strict=True)]
