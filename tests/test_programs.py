"""Tests whose programs a machine lacks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import TESTS

pytestmark = pytest.mark.slow

COMPLETION = TESTS / "config" / "test_completion.py"


@pytest.mark.parametrize(("variable", "outcome"), [({}, "4 skipped"), ({"SAE_TEST_REQUIRE_PROGRAMS": "1"}, "4 errors")])
def test_without_zsh_its_tests_are_skipped_with_the_line_that_installs_it_or_fail_where_that_is_asked_for(
    tmp_path: Path, variable: dict[str, str], outcome: str
) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "zsh", str(COMPLETION)]
    environment = {name: value for name, value in os.environ.items() if name != "SAE_TEST_REQUIRE_PROGRAMS"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment | {"PATH": str(tmp_path)} | variable)
    assert outcome in done.stdout.splitlines()[-1]
    assert "needs zsh: apt-get install zsh" in done.stdout
