"""Which runs train side by side: those that share model, data and batch, as many as memory allows."""

import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict

import torch

from sae_transcoder.config import LossFn
from sae_transcoder.preflight.peak import peak
from sae_transcoder.preflight.plan import Plan
from sae_transcoder.preflight.shared import SHARED

USABLE = 0.85  # of the device's memory; the estimate is one
BLIND = 4  # runs side by side where it is not known how many fit


def device_count(device: torch.device) -> int:
    """How many devices a sweep's workers share."""
    return max(1, torch.cuda.device_count()) if device.type == "cuda" and device.index is None else 1


def memory(plans: Sequence[Plan]) -> int:
    """Bytes that a pack of these runs needs on its device."""
    return peak([plan.memory for plan in plans]).held


def packs(plans: Sequence[Plan], workers: int) -> list[list[int]]:
    """Positions in `plans` of the runs of each pack, in order; runs of one kind are spread as far as all workers have something to do."""
    kinds: dict[str, list[int]] = {}
    for i, plan in enumerate(plans):
        values = asdict(plan.cfg)
        kind = [values[name] for name in SHARED] + [i if plan.cfg.loss_fn != LossFn.fvu else None]
        kinds.setdefault(json.dumps(kind), []).append(i)
    found: list[list[int]] = []
    for members in kinds.values():
        cfg, device = plans[members[0]].cfg, plans[members[0]].device
        available = plans[members[0]].available
        room = math.inf if available is None else USABLE * available / math.ceil(workers / device_count(device))
        most = min(cfg.runs_per_pack or (BLIND if available is None else len(members)), math.ceil(len(plans) / workers))
        while members:
            count = largest([plans[i] for i in members[:most]], room)
            found.append(members[:count])
            members = members[count:]
    return found


def largest(plans: Sequence[Plan], room: float) -> int:
    """How many of the first of these runs a pack of at most so many bytes has: at least one."""
    return 1 + bisect_right(range(2, len(plans) + 1), room, key=lambda count: memory(plans[:count]))
