"""Freed memory stays with the process, where nobody said otherwise."""

import os
import subprocess
import sys

import pytest

CODE = """
import torch
from sae_transcoder.process.host_memory import keep_freed

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def left():
    "MiB of 224 that the process still has after they were freed."
    before = resident()
    held = [torch.ones(7 * 2**20) for _ in range(8)]  # 29 MB each
    del held
    return (resident() - before) // 2**20

torch.ones(8)
print(left(), int(keep_freed()), left())
"""
KEEPS = "from sae_transcoder.process.host_memory import keep_freed; print(int(keep_freed()))"


def run(code: str, **environment: str) -> list[int]:
    """The numbers that a program prints where nothing is said of malloc but this."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=mine | environment)
    return [int(number) for number in done.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc only")
def test_freed_memory_stays_for_the_next_tensors() -> None:
    usually, kept, now = run(CODE)
    assert usually < 100, "the C library no longer gives such memory back: the setting may go"
    assert kept
    assert now > 200


def test_what_the_environment_says_of_malloc_stands() -> None:
    assert run(KEEPS, MALLOC_TRIM_THRESHOLD_="0") == [0]
