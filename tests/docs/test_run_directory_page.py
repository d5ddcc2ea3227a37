"""docs/run_directory.md has a line for every file of a run; tests of other folders look at what their runs leave (undocumented)."""

import re
from pathlib import Path

import pytest

from helpers import ROOT, TESTS
from helpers.run_directory_page import CACHE, INSIDE, RUN, SWEEP, paths, undocumented

KEPT = TESTS / "kept_runs" / "runs"
HYDRAS = {"overrides.yaml", "hydra.yaml", "optimization_results.yaml"}


@pytest.mark.parametrize("sweep", ["done", "stopped"])
def test_every_file_of_a_kept_sweep_and_its_runs_has_a_line(sweep: str) -> None:
    assert undocumented(KEPT / sweep) == []


def test_a_file_without_a_line_is_noticed(tmp_path: Path) -> None:
    for name in ("new.json", "run/status.json", "run/new.bin", "run/coders/layers.1/sae.bin", "run/coders/seed0/layers.1/cfg.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert sorted(undocumented(tmp_path)) == ["coders/layers.1/sae.bin", "new.bin", "new.json"]


@pytest.mark.parametrize("section", [RUN, SWEEP, CACHE, *INSIDE])
def test_every_line_names_something_that_the_code_writes(section: str) -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "sae_transcoder").rglob("*.py"))
    names = {path.removesuffix("/...").rpartition("/")[2] for path in paths(section)} - HYDRAS
    assert names
    words = {word for name in names for word in re.findall(r"[a-z_]+(?:\.[a-z]+)?", name)}
    assert sorted(word for word in words if word not in code) == []
