"""Which code a job runs: a copy of this package from the time of submission, and its version."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sae_transcoder import __version__

PACKAGE = Path(__file__).parents[1]
IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc")


@dataclass(frozen=True)
class Code:
    """A version of this package: `digest` of its files, release and, in a git clone, commit and number of `changed` files."""

    digest: str
    release: str
    commit: str | None = None
    changed: int = 0

    def __str__(self) -> str:
        """One line, such as `0.1.0` or, in a clone, `0.1.0.dev7, commit 1a2b3c4d, 2 files changed since`."""
        if self.commit is None:
            return self.release
        release = self.release.partition("+")[0]  # the commit in it is that of the last install
        return f"{release}, commit {self.commit[:8]}" + (f", {self.changed} files changed since" if self.changed else "")


def files() -> list[Path]:
    """The files of this package, sorted."""
    return sorted(p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts)


@cache
def current() -> Code:
    """The version that is on disk."""
    digest = hashlib.sha256()
    for path in files():
        digest.update(str(path.relative_to(PACKAGE)).encode() + b"\0" + path.read_bytes())
    # An installed package may lie in the clone of another project, which does not track it.
    commit = git("rev-parse", "HEAD") if git("ls-files", "--error-unmatch", "train.py") else None
    changed = len((git("status", "--porcelain", "--", ".") or "").splitlines()) if commit else 0
    return Code(digest.hexdigest()[:16], __version__, commit, changed)


def git(*arguments: str) -> str | None:
    """Git's output in the folder of this package; None outside a clone, or where git fails."""
    try:
        process = subprocess.run(["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout.strip() if process.returncode == 0 else None


def snapshot(folder: Path) -> Path:
    """Copies this package below `folder`, once for each version; returns the folder for PYTHONPATH.

    submitit's RsyncSnapshot needs git and rsync, copies tracked files only, and changes the working directory, to which
    relative paths in a config refer.
    """
    snapshot_dir = folder / current().digest
    if not snapshot_dir.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary_dir = Path(tempfile.mkdtemp(dir=folder))
        shutil.copytree(PACKAGE, temporary_dir / PACKAGE.name, ignore=IGNORED)
        try:
            os.rename(temporary_dir, snapshot_dir)
        except OSError:  # another command has just made it
            shutil.rmtree(temporary_dir)
    return snapshot_dir
