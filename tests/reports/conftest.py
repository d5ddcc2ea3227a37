"""What the tests of reports share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.made_up_runs import grid
from helpers.programs import CHROMIUM

QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two types, three k."""
    grid(tmp_path / "sweep", lines=20, model_type=["sae", "transcoder"], k=[8, 16, 32])
    return tmp_path / "sweep"


@pytest.fixture(scope="module")  # a second playwright cannot begin in this process before this one ends
def browser() -> Iterator[Any]:
    """Chromium, driven by playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()
