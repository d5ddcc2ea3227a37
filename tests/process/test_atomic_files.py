import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sae_transcoder.process.atomic_files import replace_file, replace_text


def test_writers_at_once_leave_one_whole_content_and_readers_never_find_another(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    contents = [str(writer) * 10_000 * writer for writer in range(1, 9)]
    path.write_text(contents[0])

    def write_and_read(content: str) -> set[str]:
        found = set()
        for _ in range(100):
            replace_text(path, content)
            found.add(path.read_text())
        return found

    with ThreadPoolExecutor(len(contents)) as pool:
        found = set().union(*pool.map(write_and_read, contents))
    assert found <= set(contents)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_what_a_killed_process_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".status.json.new").write_text("half of something longer")
    replace_text(tmp_path / "status.json", "short")
    assert (tmp_path / "status.json").read_text() == "short"
    assert [entry.name for entry in tmp_path.iterdir()] == ["status.json"]


def test_content_that_cannot_be_written_leaves_the_old_one_and_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "values.npz"
    path.write_bytes(b"old")

    def fail(file: object) -> None:
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        replace_file(path, fail)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_new_file_may_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        replace_text(tmp_path / "status.json", "{}")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "status.json").stat().st_mode) == 0o640
