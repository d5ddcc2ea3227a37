"""The rows of a CSV file, field by field as they are written."""

import codecs
import csv
from collections.abc import Iterator
from typing import BinaryIO

from sae_transcoder.config import ConfigError
from sae_transcoder.data.file_bytes import decoded


def csv_rows(file: BinaryIO, path: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (line on which it begins, fields) for each row that is not blank, the header first. Raises ConfigError for a broken row."""
    csv.field_size_limit(2**31 - 1)  # the csv module refuses fields above 128 KiB otherwise
    reader = csv.reader(text_lines(file, path), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ConfigError(
                f"dataset_name: {path}, line {line}: CSV parse error in the row that begins there ({error}); mend or remove it"
            ) from error
        if row and not (len(row) == 1 and row[0].isspace()):
            yield line, row


def text_lines(file: BinaryIO, path: str) -> Iterator[str]:
    """Yields the lines with their ends, whatever they end with."""
    number = 0
    for data in file:
        for line in data.splitlines(keepends=True):
            number += 1
            yield decoded(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, path, number)
