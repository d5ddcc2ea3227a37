"""Which kernels a step's time goes to, and how many are launched, by the language model and by the coders."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

sys.path.insert(0, str(Path(__file__).parents[1]))

from gpu.phases import Seen, forward_of

MODEL = "the forward of the language model"
SHOWN = 12  # kernels


@dataclass
class Profile:
    """What was found; on a CPU no launches, and operations in place of kernels."""

    kernels: list[tuple[str, float, float]] = field(default_factory=list)  # name, ms a step, calls a step
    launches: dict[str, float] = field(default_factory=dict)  # {"model" | "coders": a step}


def marked(*arguments: Any) -> Seen:
    """The forward, as a range of its own in a profile."""
    with record_function(MODEL):
        return forward_of(*arguments)


@contextmanager
def profiled(steps: int, device: str) -> Iterator[Profile]:
    """Profiles so many steps, whose forward is `marked`; what it yields is filled when it closes."""
    on_gpu, found = device.startswith("cuda"), Profile()
    with profile(activities=[ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])) as profiler:
        yield found
    averages = profiler.key_averages()
    own = [e for e in averages if not e.is_user_annotation and (e.device_type == DeviceType.CUDA) == on_gpu]
    times = [(e.key, (e.self_device_time_total if on_gpu else e.self_cpu_time_total) / 1000 / steps, e.count / steps) for e in own]
    found.kernels = sorted(times, key=lambda found: -found[1])[:SHOWN]
    if on_gpu:
        events = profiler.events()
        forwards = [e.time_range for e in events if e.name == MODEL and e.device_type == DeviceType.CPU]
        launched = [e.time_range.start for e in events if "LaunchKernel" in e.name]
        inside = sum(any(f.start <= start <= f.end for f in forwards) for start in launched)
        found.launches = {"model": inside / steps, "coders": (len(launched) - inside) / steps}
