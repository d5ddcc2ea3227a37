"""Text and JSON files of a run as they are read: what a crash, an editor or another version left there is told in one message, with the fix."""

import json
from pathlib import Path
from typing import Any

from sae_transcoder.config import ConfigError


class DamagedFile(ConfigError):
    """A file of a run that cannot be read. The message names the file, what is wrong with it, and the fix."""


def damaged(path: Path, what: object, fix: str) -> DamagedFile:
    """The exception for a file. what: what is wrong with it."""
    return DamagedFile(f"{path}: cannot be read ({what}); {fix}")


def read_text(path: Path, fix: str) -> str | None:
    """The text of a file; None where there is none. Raises DamagedFile."""
    try:
        return path.read_text()
    except FileNotFoundError:
        if path.is_symlink():
            raise damaged(path, f"a link to {path.readlink()}, where nothing is", fix) from None
        return None
    except OSError as error:
        raise damaged(path, error.strerror or error, fix) from error
    except ValueError as error:  # UnicodeDecodeError
        raise damaged(path, f"no text: {error}", fix) from error


def read_object(path: Path, fix: str) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is no file. Raises DamagedFile."""
    if (text := read_text(path, fix)) is None:
        return None
    if not text.strip():
        raise damaged(path, "empty", fix)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"no JSON, or cut off: {error}", fix) from error
    if not isinstance(values, dict):
        raise damaged(path, f"holds {type(values).__name__}, not an object", fix)
    return values


def is_integer(value: object) -> bool:
    """Whether a value is an integer of at most 64 bits, as a table's column holds it."""
    return type(value) is int and abs(value) < 2**63


def is_number(value: object) -> bool:
    """Whether a value is a number within the range of 64-bit integers, as a table's column holds it."""
    return isinstance(value, float | int) and not isinstance(value, bool) and abs(value) < 2**63


def printable(text: str) -> str:
    """A text with characters that cannot be encoded, such as odd bytes in a folder's name, replaced by `?`."""
    return text.encode(errors="replace").decode()
