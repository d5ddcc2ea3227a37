"""The demo text, which every Python installation has: the sources of the standard library."""

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

TEST_FOLDERS = {"test", "tests", "idle_test"}
NOT_LIBRARY = {"site-packages", "dist-packages", "ensurepip", "__pycache__"}
HELD_OUT_ONE_IN = 20  # files


def source_files() -> list[Path]:
    """Paths of the standard library's .py files relative to its root, sorted; tests and build records left out."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = []
    for folder, folders, files in os.walk(root):
        folders[:] = set(folders) - TEST_FOLDERS - NOT_LIBRARY  # os.walk does not enter the others
        inside = Path(folder).relative_to(root)
        paths += [inside / name for name in files if name.endswith(".py") and "_sysconfigdata" not in name]
    return sorted(paths)


def held_out(path: Path) -> bool:
    """Whether a file is held out; its path alone decides, so that it is the same on every machine."""
    return int(hashlib.sha256(path.as_posix().encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0


def documents(split: str) -> Iterator[str]:
    """The text of each file of a split, in the order of the paths.

    split: "train", or "heldout" for files on which neither the demo model nor a coder is trained. Raises ValueError for another one.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split={split!r}: the demo text has the splits train and heldout")
    root = Path(sysconfig.get_path("stdlib"))
    for path in source_files():
        if held_out(path) == (split == "heldout"):
            yield (root / path).read_text(encoding="utf-8", errors="replace")
