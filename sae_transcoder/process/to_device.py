"""Between host and device, with no wait for the device but one."""

from collections.abc import Sequence

import torch
from torch import Tensor


def onto(device: torch.device, values: Tensor) -> Tensor:
    """A copy of `values` on `device`; by way of page-locked memory, from which a GPU takes it when it has come so far."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" and not values.is_cuda else values.to(device)


def true_places(masks: Sequence[Tensor]) -> list[Tensor]:
    """Where each mask [place] is true, in order; a GPU is waited for once for all of them, since the results' sizes are needed here."""
    counts = torch.stack([mask.sum() for mask in masks]).tolist() if masks else []
    return [torch.nonzero_static(mask, size=count)[:, 0] for mask, count in zip(masks, counts, strict=True)]
