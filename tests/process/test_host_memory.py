"""Freed memory stays with the process, where nobody said otherwise."""

import os
import subprocess
import sys

import pytest

CODE = """
import sys, torch
from sae_transcoder.process.host_memory import keep_freed

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

kept = len(sys.argv) > 1 and keep_freed()
torch.ones(8)
before = resident()
held = [torch.ones(7 * 2**20) for _ in range(8)]  # 29 MB each
del held
print(int(kept), (resident() - before) // 2**20)
"""


def run(*arguments: str, **environment: str) -> list[int]:
    """Whether freed memory is kept, and how many MiB of 224 still are after they were freed."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=True, env=mine | environment
    )
    return [int(number) for number in done.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc only")
def test_freed_memory_stays_for_the_next_tensors() -> None:
    _, usually = run()
    kept, now = run("keep")
    assert usually < 100, "the C library no longer gives such memory back: the setting may go"
    assert kept
    assert now > 200


def test_what_the_environment_says_of_malloc_stands() -> None:
    assert run("keep", MALLOC_TRIM_THRESHOLD_="0")[0] == 0
