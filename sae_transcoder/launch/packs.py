"""Which runs train side by side: those that share model, data and batch, as many as memory allows."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from sae_transcoder.config import LossFn
from sae_transcoder.preflight.peak import peak
from sae_transcoder.preflight.plan import Plan
from sae_transcoder.preflight.side_by_side import SHARED

if TYPE_CHECKING:
    import torch

USABLE = 0.85  # of the device's memory, since needs are estimates
RUNS_WHEN_UNKNOWN = 4  # in a pack where the device's memory is not known


def device_count(device: torch.device) -> int:
    """Number of devices that a sweep's workers share."""
    import torch

    return max(1, torch.cuda.device_count()) if device.type == "cuda" and device.index is None else 1


def memory(plans: Sequence[Plan]) -> int:
    """Bytes that a pack of these runs needs on its device."""
    return peak([plan.memory for plan in plans]).total_bytes


def group_into_packs(plans: Sequence[Plan], workers: int) -> list[list[int]]:
    """The runs of each pack, in order, as positions in `plans`. Packs are small enough to give all workers something to do."""
    positions_by_kind: dict[str, list[int]] = {}
    for i, plan in enumerate(plans):
        values = asdict(plan.cfg)
        kind = [values[name] for name in SHARED] + [i if plan.cfg.loss_fn != LossFn.fvu else None]
        positions_by_kind.setdefault(json.dumps(kind), []).append(i)
    packs: list[list[int]] = []
    for positions in positions_by_kind.values():
        first = plans[positions[0]]
        cfg, device, available = first.cfg, first.device, first.available
        max_bytes = math.inf if available is None else USABLE * available / math.ceil(workers / device_count(device))
        max_runs = cfg.runs_per_pack or (RUNS_WHEN_UNKNOWN if available is None else len(positions))
        max_runs = min(max_runs, math.ceil(len(plans) / workers))
        while positions:
            count = num_that_fit([plans[i] for i in positions[:max_runs]], max_bytes)
            packs.append(positions[:count])
            positions = positions[count:]
    return packs


def num_that_fit(plans: Sequence[Plan], max_bytes: float) -> int:
    """How many of these runs, from the first on, fit into one pack of at most so many bytes; at least one."""
    return 1 + bisect_right(range(2, len(plans) + 1), max_bytes, key=lambda count: memory(plans[:count]))
