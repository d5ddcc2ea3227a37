"""What tests marked `device` compute on: the CPU, or the GPU that SAE_TEST_DEVICE names (cuda, cuda:1). Any other test computes on the CPU.

On a GPU bits are compared as on the CPU, in float32 with deterministic=true, where both sides use the same kernels; what is compared with an
independent computation has a tolerance of its own there, with its reason beside it.
"""

import torch

from helpers.device_name import NAMED, ON_GPU

DEVICE = torch.device(NAMED if ON_GPU else "cpu")
# What a run is given for its bits to be compared: a GPU's default would be bfloat16, compiled, with sums in no fixed order.
SETTINGS: dict[str, object] = {"device": NAMED, "dtype": "float32", "deterministic": True} if ON_GPU else {}
ON_DEVICE = [f"{name}={str(value).lower()}" for name, value in SETTINGS.items()]


def by_device(*, cpu: float, gpu: float) -> float:
    """A tolerance for the device at hand. Those for a GPU are what the formats of numbers let expect; docs/gpu.md says which of them
    a GPU has run."""
    return gpu if ON_GPU else cpu
