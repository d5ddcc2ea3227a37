"""Files replaced atomically: a reader finds the old content or the new, also after a process was killed or while several write."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def replace_text(path: Path, text: str) -> None:
    """Replaces the content of the file atomically, and overwrites what a killed process left beside it."""
    replace_file(path, lambda file: file.write(text.encode()))


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """The same for content that `write` puts into a file that is open. Several processes write one after the other; the last one's stays."""
    new_path = path.with_name(f".{path.name}.new")
    with opened_alone(new_path) as file:
        try:
            write(file)
            file.flush()
            os.replace(new_path, path)
        except BaseException:
            new_path.unlink(missing_ok=True)
            raise


@contextmanager
def opened_alone(path: Path) -> Iterator[BinaryIO]:
    """The file, made where there is none, and empty; waits while another process has it open here.

    filelock would leave a second file beside each.
    """
    while True:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if is_at(file, path):  # else the process that was waited for has moved it to its place
                file.truncate()
                yield file
                return


def is_at(file: BinaryIO, path: Path) -> bool:
    """Whether the path still leads to the open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def sync(path: Path) -> None:
    """Forces a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
