"""Simulated GPUs: calls of the driver are answered and recorded, and tensors for a GPU are made on the CPU.

None of this project's code is replaced: it runs as on a machine with PRETEND_GPUS GPUs. `python pretend_gpu.py ARGUMENTS` runs
`sae-train ARGUMENTS` there, also in the workers that it starts. PRETEND_NOTES names a file of JSON lines, one for each call of the driver and
for the first tensor: the call, its device, and the environment's settings of the allocator.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode


class OnCpu(TorchFunctionMode):
    """While it is open, tensors made on a GPU or moved there are on the CPU instead; the first one is recorded."""

    used = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def on_cpu(value: Any) -> Any:
            if not (isinstance(value, torch.device | str) and str(value).startswith("cuda")):
                return value
            if not self.used:
                note("first tensor", torch.device(value).index or 0)
                self.used = True
            return torch.device("cpu")

        if func is torch.device:
            return func(*args, **(kwargs or {}))
        if func is torch.Tensor.pin_memory:
            return args[0]
        return func(*map(on_cpu, args), **{name: on_cpu(value) for name, value in (kwargs or {}).items()})


def count() -> int:
    """The number of GPUs that the process sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return len(visible.split(",")) if visible else int(os.environ["PRETEND_GPUS"])


def note(call: str, index: int) -> None:
    entry = {"asked": call, "index": index, "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}
    entry |= {name: os.environ.get(name) for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")}
    with Path(os.environ["PRETEND_NOTES"]).open("a") as file:
        file.write(json.dumps(entry) + "\n")


def set_device(index: int) -> None:
    note("set device", index)


def properties(device: Any = None) -> SimpleNamespace:
    index = torch.device(device).index if isinstance(device, torch.device | str) else device
    note("properties", index or 0)
    return SimpleNamespace(total_memory=80 * 2**30, major=9, minor=0, name="a GPU in name only")


class LikeNccl(dist.ProcessGroup):
    """Exchanges tensors as NCCL does: a rank does not notice that another is gone and waits until the group is aborted; an aborted exchange
    ends as if it were done, with meaningless numbers."""

    def __init__(self, store: Any, rank: int, size: int, timeout: Any):
        super().__init__(rank, size)
        self.real = dist.ProcessGroupGloo(store, rank, size, timeout)
        self.aborted = threading.Event()

    def allreduce(self, tensors: Any, options: Any = None) -> "Exchange":
        return Exchange(self, self.real.allreduce(tensors, options), tensors)

    def allgather(self, outputs: Any, tensors: Any, options: Any = None) -> "Exchange":
        return Exchange(self, self.real.allgather(outputs, tensors, options), outputs[0])

    def abort(self) -> None:
        self.aborted.set()


class Exchange:
    """An exchange under way."""

    def __init__(self, group: LikeNccl, work: Any, results: Any):
        self.group, self.work, self.results = group, work, results

    def wait(self) -> None:
        while not (self.work.is_completed() and self.work.is_success()):
            time.sleep(0.002)
            if self.group.aborted.is_set():
                for result in self.results:
                    result.fill_(torch.nan if result.is_floating_point() else 1)
                return


def replacements() -> list[tuple[Any, str, Any]]:
    """(object, name of the attribute, replacement)."""
    new_group = dist.new_group
    dist.Backend.register_backend("like_nccl", LikeNccl, devices=["cpu"])
    return [
        (torch.cuda, "is_available", lambda: True),
        (torch.cuda, "device_count", count),
        (torch.cuda, "current_device", lambda: 0),
        (torch.cuda, "get_device_properties", properties),
        (torch.cuda, "synchronize", lambda device=None: None),
        (torch._C, "_cuda_setDevice", set_device),
        (dist, "new_group", lambda backend, **named: new_group(backend=backend.replace("nccl", "like_nccl"), **named)),
    ]


def install() -> None:
    """Simulates the GPUs in this process from now on."""
    for where, name, replacement in replacements():
        setattr(where, name, replacement)
    OnCpu().__enter__()


if "PRETEND_GPUS" in os.environ and __name__ in ("__main__", "__mp_main__"):
    install()

if __name__ == "__main__":
    from sae_transcoder import train

    sys.argv[0] = "sae-train"
    train.main()
