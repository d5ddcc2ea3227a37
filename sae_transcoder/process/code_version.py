"""Which code a job runs: a copy of this package as it was at submission, and what tells it from others."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc")


@dataclass(frozen=True)
class Code:
    """The code of this process: `digest` of its files, the release, and the git commit where it lies in a clone, with `changed` files."""

    digest: str
    release: str
    commit: str | None = None
    changed: int = 0

    def __str__(self) -> str:
        """One line, such as `0.1.0, commit 1a2b3c4d, 2 files changed since`."""
        if self.commit is None:
            return self.release
        return f"{self.release}, commit {self.commit[:8]}" + (f", {self.changed} files changed since" if self.changed else "")


def files() -> list[Path]:
    """The files of this package, in order."""
    return sorted(p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts)


@cache
def current() -> Code:
    """The code as it is now on disk."""
    digest = hashlib.sha256()
    for path in files():
        digest.update(str(path.relative_to(PACKAGE)).encode() + b"\0" + path.read_bytes())
    # A package below an environment's folder may lie in a clone of something else, which does not track it.
    commit = git("rev-parse", "HEAD") if git("ls-files", "--error-unmatch", "train.py") else None
    changed = len((git("status", "--porcelain", "--", ".") or "").splitlines()) if commit else 0
    return Code(digest.hexdigest()[:16], version("sae-transcoder"), commit, changed)


def git(*arguments: str) -> str | None:
    """What git says of the clone that this package lies in; None where it lies in none, or git refuses."""
    try:
        done = subprocess.run(["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def snapshot(folder: Path) -> Path:
    """A copy of this package below `folder`, one for each version of it; returns what PYTHONPATH must hold.

    submitit's RsyncSnapshot needs git and rsync, takes tracked files only, and changes the working directory, to which
    relative paths in a config refer.
    """
    place = folder / current().digest
    if not place.exists():
        folder.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=folder))
        shutil.copytree(PACKAGE, beside / PACKAGE.name, ignore=LEFT_OUT)
        try:
            os.rename(beside, place)
        except OSError:  # another command has just made it
            shutil.rmtree(beside)
    return place
