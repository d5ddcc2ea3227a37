"""What the tests of reports share."""

from pathlib import Path

import pytest

from helpers.made_up_runs import grid


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two types, three k."""
    grid(tmp_path / "sweep", lines=20, model_type=["sae", "transcoder"], k=[8, 16, 32])
    return tmp_path / "sweep"
