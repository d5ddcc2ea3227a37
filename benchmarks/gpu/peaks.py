"""What the card itself does at most, measured by the kernels that come nearest: a product of bfloat16 matrices, a copy. Started by run.py.

Other figures are held against these and not against a data sheet, whose numbers no kernel reaches and which differ between cards of like names.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from contenders import meter

REPEATS = 10


def settle(device: str) -> None:
    """Waits for what the device was told to do."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds(function: Callable[[], Any], device: str) -> float:
    """The median time of a call, after three that are not counted."""
    times = []
    for _ in range(REPEATS + 3):
        settle(device)
        start = time.perf_counter()
        function()
        settle(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


class Memory:
    """What this process takes of the device: of a GPU as torch and the driver say, of a CPU what it holds beyond what it held at first."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device.startswith("cuda")
        self.before = meter.memory("VmRSS")

    def peaks(self) -> dict[str, int]:
        """Bytes: allocated at most since `forget`; of a GPU also reserved by torch at most and now, and in use by all programs now."""
        if not self.on_gpu:
            return {"allocated": meter.memory("VmHWM") - self.before}
        free, total = torch.cuda.mem_get_info()
        own = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
        return own | {"reserved_now": torch.cuda.memory_reserved(), "in_use": total - free}

    def clear_traceback_locals(self) -> None:
        """Gives back what torch holds and does not use, and begins anew with the peaks."""
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")


def main(device: str, size: int) -> None:
    """Prints a JSON line: the card's name and memory, FLOP/s of a product of bfloat16 matrices (on a CPU float32) of this size, and bytes/s
    of a copy, read and written bytes counted."""
    on_gpu = device.startswith("cuda")
    a = torch.randn(size, size, device=device).to(torch.bfloat16 if on_gpu else torch.float32)
    flop = 2 * size**3 / seconds(lambda: a @ a, device)
    source = torch.randn(16 * size, size, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * 4 / seconds(lambda: target.copy_(source), device)
    found: dict[str, Any] = {"device": device, "torch": torch.__version__, "flop_per_s": flop, "bytes_per_s": moved}
    if on_gpu:
        card = torch.cuda.get_device_properties(device)
        found |= {"card": card.name, "card_memory": card.total_memory}
    else:
        found["card"] = f"CPU, {torch.get_num_threads()} threads"
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
