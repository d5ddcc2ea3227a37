"""What run.py tries before it measures: that runs start, that results are right on this device, and what happens where memory does not suffice."""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from gpu.tasks import Task, python

TESTS = Path(__file__).parents[2] / "tests"


def tests(*names: str, processes: int) -> Task:
    """These files of tests, on the device that SAE_TEST_DEVICE names; in several processes where pytest can."""
    several = ["-n", str(processes)] if processes > 1 and find_spec("xdist") else []
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *several]
    return Task(
        "check", f"tests: {', '.join(names)}", 35, lambda _: [*pytest, *(f"{TESTS}/{name}.py" for name in names)], limit=120
    )


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
        return [trained("a run", 10, 16), oom, tests("coder/test_corrected_coder", processes=1)]
    return [
        Task("check", "nvidia-smi", 2, lambda _: ["nvidia-smi"], limit=20),
        trained("a run", 20, 800),
        tests(
            *("coder/test_corrected_coder", "coder/test_autograd_functions", "training/test_oracle"),
            *("training/test_coder_trainer", "language_model/test_forward"),
            processes=4,
        ),
        oom,
        trained("a sweep of 8", 30, 800, "-m", "k=8,16,32,64", "expansion_factor=4,8"),
        tests("evaluation/test_heldout", "training/test_engine", "training/test_end_to_end", processes=4),
    ]
