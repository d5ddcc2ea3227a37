"""A GPU in name only: what the driver would be asked is answered and noted, and tensors that would lie there lie on the CPU.

Nothing of this project is replaced: its own code runs as on a machine with so many GPUs as PRETEND_GPUS says. `python pretend_gpu.py
ARGUMENTS` is `sae-train ARGUMENTS` there, in the workers that it starts too. PRETEND_NOTES names a file of lines of JSON, one for each call
of the driver and for the first tensor: what was asked, of which device, and how the environment has memory handed out.
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
    """While it is open, tensors that would be made on a GPU, or moved there, lie on the CPU; the first one is noted."""

    used = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def here(value: Any) -> Any:
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
        return func(*map(here, args), **{name: here(value) for name, value in (kwargs or {}).items()})


def count() -> int:
    """GPUs that the process sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return len(visible.split(",")) if visible else int(os.environ["PRETEND_GPUS"])


def note(what: str, index: int) -> None:
    said = {"asked": what, "index": index, "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}
    said |= {name: os.environ.get(name) for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")}
    with Path(os.environ["PRETEND_NOTES"]).open("a") as file:
        file.write(json.dumps(said) + "\n")


def set_device(index: int) -> None:
    note("set device", index)


def properties(device: Any = None) -> SimpleNamespace:
    index = torch.device(device).index if isinstance(device, torch.device | str) else device
    note("properties", index or 0)
    return SimpleNamespace(total_memory=80 * 2**30, major=9, minor=0, name="a GPU in name only")


class LikeNccl(dist.ProcessGroup):
    """Ranks exchange tensors as over NCCL: one that waits for another does not notice that it is gone and waits until it is told to abort;
    what is aborted ends as if it were done, with numbers that mean nothing."""

    def __init__(self, store: Any, rank: int, size: int, timeout: Any):
        super().__init__(rank, size)
        self.real = dist.ProcessGroupGloo(store, rank, size, timeout)
        self.aborted = threading.Event()

    def allreduce(self, tensors: Any, options: Any = None) -> "Exchange":
        return Exchange(self, self.real.allreduce(tensors, options), tensors)

    def allgather(self, found: Any, tensors: Any, options: Any = None) -> "Exchange":
        return Exchange(self, self.real.allgather(found, tensors, options), found[0])

    def abort(self) -> None:
        self.aborted.set()


class Exchange:
    """One that is under way."""

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
    """What is replaced, where, and by what."""
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
    """Has this process see the GPUs from now on."""
    for where, name, replacement in replacements():
        setattr(where, name, replacement)
    OnCpu().__enter__()


if "PRETEND_GPUS" in os.environ and __name__ in ("__main__", "__mp_main__"):
    install()

if __name__ == "__main__":
    from sae_transcoder import train

    sys.argv[0] = "sae-train"
    train.main()
