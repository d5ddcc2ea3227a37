"""Every target can be found, and the command names it."""

import subprocess
import sys

import pytest

from sae_transcoder.exports.targets import TARGETS, find_writer


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_has_a_writer(target: str) -> None:
    assert callable(find_writer(target, {}))


def test_help_names_every_target_and_imports_no_torch() -> None:
    code = "import sys; from sae_transcoder.export import main\ntry:\n  main()\nfinally:\n  assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert f"to={', '.join(TARGETS)}" in " ".join(done.stdout.split())
