"""The code of a job: its digest and its copy are of the whole package, its sub-packages among them."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sae_transcoder.process import code_version


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package that code_version takes for its own."""
    copy = tmp_path / "clone" / "sae_transcoder"
    shutil.copytree(code_version.PACKAGE, copy, ignore=code_version.IGNORED)
    monkeypatch.setattr(code_version, "PACKAGE", copy)
    code_version.current.cache_clear()
    yield copy
    code_version.current.cache_clear()


@pytest.mark.parametrize("name", ["train.py", "training/engine.py", "launch/slurm/job.py", "demo/model/config.json"])
def test_a_change_of_any_file_is_other_code_and_the_copy_keeps_the_file_as_it_was(package: Path, tmp_path: Path, name: str) -> None:
    before, text = code_version.current().digest, (package / name).read_text()
    place = code_version.snapshot(tmp_path / "code")
    (package / name).write_text(text + "\n")
    code_version.current.cache_clear()
    assert code_version.current().digest != before
    assert (place / "sae_transcoder" / name).read_text() == text
    assert code_version.snapshot(tmp_path / "code") != place


def test_the_copy_has_every_file_of_the_package(tmp_path: Path) -> None:
    place = code_version.snapshot(tmp_path) / "sae_transcoder"
    assert {path.relative_to(place) for path in place.rglob("*") if path.is_file()} == {
        path.relative_to(code_version.PACKAGE) for path in code_version.files()
    }
    assert (place / "launch" / "slurm" / "job.py").exists()
