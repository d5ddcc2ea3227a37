"""Files replaced atomically: a reader finds the old content or the new, also after a process was killed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def replace_text(path: Path, text: str) -> None:
    """Replaces the content of the file atomically, and overwrites what a killed process left beside it."""
    new_path = path.with_name(f".{path.name}.new")
    new_path.write_text(text)
    os.replace(new_path, path)


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """The same for content that `write` puts into a file that is open."""
    new_path = path.with_name(f".{path.name}.new")
    with new_path.open("wb") as file:
        write(file)
    os.replace(new_path, path)


def sync(path: Path) -> None:
    """Forces a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
