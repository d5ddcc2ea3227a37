"""Programs that read what is exported, in environments of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import ROOT


def run_in(peer: str, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs Python in a peer's environment, without a network; says how to make the environment where there is none."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from peers import environments

    try:
        python = environments.python(peer)
    except SystemExit as missing:
        pytest.fail(str(missing))
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run([python, *command], capture_output=True, text=True, env=environment)
