"""What run.py tries before it measures: that runs start, that results are right on this device, and what happens where memory does not suffice."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from gpu.tasks import Task, python

TESTS = Path(__file__).parents[2] / "tests"


def by_device(*names: str, seconds: float, limit: float) -> Task:
    """These tests, none: all, on the device that SAE_TEST_DEVICE names; in as many processes as there are cores, where pytest can."""
    several = ["-n", str(min(os.cpu_count() or 1, 12))] if find_spec("xdist") else []
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not kill and not peers", *several]
    paths = [f"{TESTS}/{name}.py" for name in names] or [str(TESTS)]
    return Task("check", f"tests: {', '.join(names) or 'all by device'}", seconds, lambda _: [*pytest, *paths], limit=limit)


def trained(name: str, seconds: float, samples: int, *settings: str) -> Task:
    """The demo from the command line, on the device that it finds by itself."""

    def command(folder: Path) -> list[str]:
        base = ["experiment=demo", f"max_samples={samples}", "eval_samples=16", f"save_dir={folder}", f"cache_dir={folder}"]
        return [sys.executable, "-m", "sae_transcoder.train", *settings, *base]

    return Task("check", name, seconds, command, limit=120)


def checks(device: str) -> list[Task]:
    """All of them; on a CPU some, as a trial."""
    oom = Task("check", "out of memory, provoked", 25, lambda _: python("oom.py", device), limit=90)
    if not device.startswith("cuda"):
        return [trained("a run", 10, 16), oom, by_device("coder/test_corrected_coder", seconds=35, limit=120)]
    return [
        Task("check", "nvidia-smi", 2, lambda _: ["nvidia-smi"], limit=20),
        trained("a run", 20, 800),
        oom,
        trained("a sweep of 8", 30, 800, "-m", "k=8,16,32,64", "expansion_factor=4,8"),
        by_device(seconds=120, limit=300),
    ]
