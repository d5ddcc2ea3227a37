"""What several test files share. Processes that tests start find it by FINDING_TESTS in their environment."""

import os
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
FINDING_TESTS = {"PYTHONPATH": os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))}

HANGS = 600
"""Seconds after which a process of a test is taken to hang. On an idle machine none takes a minute; several tests at once, on a slow one, do."""
