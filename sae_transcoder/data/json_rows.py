"""The rows of a JSON file: one object a line; or one array of objects or strings; in a .json file also one object that holds them."""

import codecs
import json
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, BinaryIO

from sae_transcoder.config import ConfigError
from sae_transcoder.data.file_bytes import decoded

BLOCK = 10 << 20  # bytes read at a time, and a line to its end: as datasets does, on which the shuffled order of a stream depends

PlacedRow = tuple[str, dict[str, Any]]  # where it is in which file, for messages; the row


def json_blocks(file: BinaryIO, path: str, column: str) -> Iterator[list[PlacedRow]]:
    """Yields the rows, block by block. Only JSON lines are read in blocks: a file that is one array or object is read as a whole.

    column: the one that will be read, by which an object that is a row is told from one that holds rows.
    Raises ConfigError for what is not JSON and for a row that is no object.
    """
    first, ahead = file.read(BLOCK) + file.readline(), file.read(1)
    first = first.removeprefix(codecs.BOM_UTF8)
    if is_whole(first, path, at_end=not ahead):
        yield whole_rows(parsed(first + ahead + file.read(), path, 1), path, column)
        return
    yield placed_rows(first, path, 1)
    number = 1 + first.count(b"\n")
    while block := ahead + file.read(BLOCK - len(ahead)):
        block += file.readline()
        yield placed_rows(block, path, number)
        ahead, number = b"", number + block.count(b"\n")


def placed_rows(block: bytes, path: str, number: int) -> list[PlacedRow]:
    """The rows of a block of JSON lines; number: of its first line."""
    lines = ((f"{path}, line {at}", at, line) for at, line in enumerate(block.split(b"\n"), number) if not is_blank(line))
    return [(place, as_row(parsed(line, path, at), place)) for place, at, line in lines]


def is_blank(line: bytes) -> bool:
    """Whether the line holds nothing but white space."""
    return not line or line.isspace()


def is_whole(first: bytes, path: str, at_end: bool) -> bool:
    """Whether the file, which begins with these lines, is one array, or as a .json file may be, one object. at_end: these are all."""
    if first.lstrip().startswith(b"["):
        return True
    if ".json" not in PurePath(path.split("::")[0]).suffixes or is_blank(first):
        return False
    line, _, rest = first.lstrip().partition(b"\n")
    return (at_end and is_blank(rest)) or not is_json(line)


def is_json(line: bytes) -> bool:
    """Whether the line is JSON by itself."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def whole_rows(whole: Any, path: str, column: str) -> list[PlacedRow]:
    """The rows of a file that is one array or one object; a string in an array is a row's text."""
    rows = whole if isinstance(whole, list) else rows_in(whole, column)
    placed = ((f"{path}, row {number}", {"text": row} if isinstance(row, str) else row) for number, row in enumerate(rows, 1))
    return [(place, as_row(row, place)) for place, row in placed]


def rows_in(whole: Any, column: str) -> list[Any]:
    """The rows of the only object in a file: whole columns, as pandas writes them; else the only list of objects in it; else it is a row."""
    if not isinstance(whole, dict):
        return [whole]
    if is_column(whole.get(column)):
        return [{column: value} for value in (whole[column].values() if isinstance(whole[column], dict) else whole[column])]
    lists = [value for value in whole.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    return lists[0] if column not in whole and len(lists) == 1 else [whole]


def is_column(value: Any) -> bool:
    """Whether the value under a column's name is all its rows: texts or lists, in a list or by row number. Ids alone are one row."""
    rows = list(value.values()) if isinstance(value, dict) else value
    return isinstance(rows, list) and bool(rows) and all(isinstance(row, str | list | None) for row in rows)


def parsed(data: bytes, path: str, line: int) -> Any:
    """What the data says, which begins on a line of the file. Raises ConfigError where it is not JSON."""
    text = decoded(data, path, line)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place, reason = f"{path}, line {line + error.lineno - 1}", f"column {error.colno}: {error.msg}"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; lists in thousands of others
        place, reason = f"{path}, line {line}", str(error)
    raise ConfigError(f"dataset_name: {place}: JSON parse error ({reason}); mend or remove it, it may have been cut off")


def as_row(value: Any, place: str) -> dict[str, Any]:
    """The value as a row. Raises ConfigError for one that is no object."""
    if not isinstance(value, dict):
        raise ConfigError(
            f'dataset_name: {place}: {type(value).__name__} instead of an object like {{"text": "..."}}; mend or remove it'
        )
    return value
