"""How often the processor waits for the device, and where."""

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from ourselves.op_cost import Counting


@contextmanager
def watched(device: str) -> Iterator[Counter[str]]:
    """Yields {place in the code: times that the processor waited}, filled when it closes: on a GPU what CUDA's debug mode reports, elsewhere
    the operations at which it would wait, those on tensors of the host's own among them."""
    places: Counter[str] = Counter()
    if not device.startswith("cuda"):
        with Counting(device) as counting:
            yield places
        places.update({name: part.waits for name, part in counting.parts.items() if part.waits})
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        if "called a synchronizing" in str(warning.message):  # torch's, which also warns of the watch itself
            places[f"{Path(warning.filename).name}:{warning.lineno}"] += 1
