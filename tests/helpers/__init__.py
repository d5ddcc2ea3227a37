"""What several test files share. Processes that tests start find it by PYTHONPATH=TESTS."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
