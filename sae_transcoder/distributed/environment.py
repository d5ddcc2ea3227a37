"""Which rank this process is, by its environment."""

import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
REFUSAL_SECONDS = 5.0  # in which rank 0 prints why a run is refused


def world_size() -> int:
    """The number of ranks that train together; 1 for a process alone."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in VARIABLES) else 1


def rank() -> int:
    """This process's rank; rank 0 writes and prints."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def local_rank() -> int:
    """This process's place among the ranks of its machine."""
    return int(os.environ["LOCAL_RANK"]) if world_size() > 1 else 0


def refuse(faults: Sequence[str], *, on_every_rank: bool = False) -> NoReturn:
    """Prints each fault and ends with exit code 1. Only rank 0 prints unless `on_every_rank`; the others wait for it, because torchrun ends
    all ranks once one has ended."""
    if rank() > 0 and not on_every_rank:
        time.sleep(REFUSAL_SECONDS)
        sys.exit(1)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    sys.exit(1)
