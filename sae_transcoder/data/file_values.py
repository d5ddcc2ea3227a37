"""The values of one column in a file of text, JSON or CSV, block by block; whatever is wrong is told with its file and line."""

import codecs
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import Any, BinaryIO, Literal

from sae_transcoder.config import ConfigError
from sae_transcoder.data.csv_rows import csv_rows
from sae_transcoder.data.file_bytes import COMPRESSIONS, decoded, open_bytes
from sae_transcoder.data.json_rows import json_blocks

Wanted = Literal["text", "ids"] | None  # what a column must hold: text, lists of token ids; None: anything

# {suffix: the kind of file}
KINDS = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
CSV_BLOCK = 10_000  # rows: as datasets does, on which the shuffled order of a stream depends
PARQUET_BATCH = 1000  # rows; datasets takes the size of the first row group, which may be 0
WITHOUT_COLUMN = 10_000  # rows at the start of a file, at least, after which a column that none of them has is said to be missing
SHOWN_NAMES = 20  # columns that a message names


class MissingColumn(ConfigError):
    """Data without the column to read. `field`: the setting that names it; `names`: the columns that the data have."""

    field: str
    names: list[str]


def file_kind(path: str | PurePath) -> str | None:
    """The kind of a file by its name, None for a kind that is not read."""
    path = PurePath(path)
    if path.suffix not in COMPRESSIONS:
        return KINDS.get(path.suffix)
    kind = KINDS.get(path.with_suffix("").suffix)
    return kind if kind != "parquet" else None  # Parquet is compressed inside


def value_blocks(path: str, kind: str, column: str, wanted: Wanted, delimiter: str = ",") -> Iterator[list[Any]]:
    """Yields the column's values in a file, as many as are read at a time; delimiter: what separates the fields of a CSV file.

    Raises ConfigError for a file that cannot be read, lacks the column or holds what is not wanted.
    """
    readers: dict[str, Callable[[BinaryIO], Iterator[list[Any]]]] = {
        "text": lambda file: text_blocks(file, path, column, wanted),
        "json": lambda file: json_value_blocks(file, path, column, wanted),
        "csv": lambda file: csv_value_blocks(file, path, column, wanted, delimiter),
    }
    try:
        with open_bytes(path) as file:
            yield from readers[kind](file)
    except OSError as error:
        if "://" in path:  # the network's fault
            raise
        raise ConfigError(f"dataset_name: {path}: cannot be read ({error}); mend the file or leave it out") from error


def text_blocks(file: BinaryIO, path: str, column: str, wanted: Wanted) -> Iterator[list[Any]]:
    """Yields the text of a file, which is one document; its lines end with a line feed whatever they end with there."""
    if column != "text":
        raise missing_column(path, column, wanted, ["text"])
    text = decoded(file.read().removeprefix(codecs.BOM_UTF8), path, 1).replace("\r\n", "\n").replace("\r", "\n")
    check_value(text, column, wanted, path)
    yield [text]


def csv_value_blocks(file: BinaryIO, path: str, column: str, wanted: Wanted, delimiter: str) -> Iterator[list[Any]]:
    """Yields the column's fields as they are written. Raises ConfigError for a row with more or fewer fields than the header."""
    rows = csv_rows(file, path, delimiter)
    _, header = next(rows, (0, [column]))
    if column not in header:
        raise missing_column(path, column, wanted, header)
    position = header.index(column)

    def value(line: int, row: list[str]) -> str:
        if len(row) != len(header):
            raise ConfigError(
                f"dataset_name: {path}, line {line}: the row has {counted(len(row), 'field')}, and the header {len(header)} ({listed(header)}); "
                f"put a field that holds {delimiter!r} in quotation marks, or mend or remove the row"
            )
        check_value(row[position], column, wanted, f"{path}, line {line}")
        return row[position]

    while block := [value(line, row) for line, row in itertools.islice(rows, CSV_BLOCK)]:
        yield block


def json_value_blocks(file: BinaryIO, path: str, column: str, wanted: Wanted) -> Iterator[list[Any]]:
    """Yields the column's values, None for a row that lacks it. Raises ConfigError where no row has it."""
    has_column, others, number = False, dict[str, None](), 0
    for rows in json_blocks(file, path, column):
        for place, row in rows:
            has_column = has_column or column in row
            if has_column:
                check_value(row.get(column), column, wanted, place)
            else:
                others |= dict.fromkeys(row)
        number += len(rows)
        if not has_column and number >= WITHOUT_COLUMN:
            break
        yield [row.get(column) for _, row in rows]
    if not has_column and number:
        raise missing_column(path, column, wanted, list(others))


def column_features(column: str, wanted: Wanted) -> Any:
    """The declared type of what `stored_values` gives, so that no block of a file decides what others may hold."""
    import datasets

    text = datasets.Value("large_string")
    return datasets.Features({column: datasets.Sequence(datasets.Value("int64")) if wanted == "ids" else text})


def stored_values(values: list[Any], wanted: Wanted) -> list[Any]:
    """The values as they are put into Arrow tables: those of any type as JSON."""
    return values if wanted is not None else [json.dumps(value) for value in values]


def check_value(value: Any, column: str, wanted: Wanted, place: str) -> None:
    """Raises ConfigError for a value that is not what is wanted; a row may hold no text."""
    if wanted == "ids" and not is_ids(value):
        raise ConfigError(f"tokens_column={column}: {place}, is not a list of token ids; choose another column")
    if wanted == "text" and value is not None and not isinstance(value, str):
        raise ConfigError(f"text_column={column}: {place}, holds {type(value).__name__} there, not text; choose another column")
    if wanted == "text" and value is not None and not is_unicode(value):
        raise ConfigError(
            f"text_column={column}: {place}, holds half of a character (a lone surrogate), not text; mend or remove it"
        )


def is_ids(value: Any) -> bool:
    """Whether the value is a list of integers of at most 64 bits."""
    return isinstance(value, list) and all(type(i) is int and -(2**63) <= i < 2**63 for i in value)


def is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8, as all text can but halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def missing_column(path: str, column: str, wanted: Wanted, names: list[str]) -> MissingColumn:
    """The error for a file that lacks the column."""
    field = {"ids": "tokens_column", "text": "text_column", None: "messages_column"}[wanted]
    error = MissingColumn(
        f"{field}={column}: {path} has {listed(names)} and no {column}; set {field} to a column that each file has"
    )
    error.field, error.names = field, names
    return error


def listed(names: list[str]) -> str:
    """The columns' names for a message."""
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return f"the column{'' if len(names) == 1 else 's'} {', '.join(names[:SHOWN_NAMES])}{more}"


def counted(number: int, thing: str) -> str:
    """So many things, for a message."""
    return f"{number} {thing}{'' if number == 1 else 's'}"
