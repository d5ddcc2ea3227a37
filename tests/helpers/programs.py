"""Programs that some tests need and pip does not install: whether this machine has them, and the line that installs them.

A test that needs one is marked `needs("zsh")`. Without it the test is skipped, or fails where SAE_TEST_REQUIRE_PROGRAMS is set, as in .ci/run.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from typing import NamedTuple

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SLURM = ("munged", "slurmctld", "slurmd", "sbatch")
REQUIRED = bool(os.environ.get("SAE_TEST_REQUIRE_PROGRAMS"))


class Program(NamedTuple):
    """What a test needs."""

    is_here: Callable[[], bool]
    packages: str  # Debian's packages that bring it


def has_slurm() -> bool:
    """Whether Slurm's daemons and commands are here; Debian keeps daemons where only root looks."""
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    return all(shutil.which(program, path=path) for program in SLURM)


def compiles() -> bool:
    """Whether torch.compile finds a compiler for the device under test."""
    from helpers.device import DEVICE
    from sae_transcoder.language_model.compilation import machine_obstacle

    return machine_obstacle(DEVICE) is None


PROGRAMS: Mapping[str, Program] = {
    "zsh": Program(lambda: shutil.which("zsh") is not None, "zsh"),
    "chromium": Program(lambda: CHROMIUM is not None, "chromium"),
    "slurm": Program(has_slurm, "munge slurmctld slurmd slurm-client"),
    "compiler": Program(compiles, "g++ python3-dev"),
}


def lacking(name: str) -> str | None:
    """The message for a program that this machine lacks; None where it has the program."""
    program = PROGRAMS[name]
    return None if program.is_here() else f"needs {name}: apt-get install {program.packages}"
