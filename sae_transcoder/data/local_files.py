"""Local files as one data set of one column: an Arrow file on disk, so that memory never holds all documents."""

import glob
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sae_transcoder.config import ConfigError
from sae_transcoder.data.file_bytes import file_identity
from sae_transcoder.data.file_values import (
    PARQUET_BATCH,
    Wanted,
    column_features,
    file_kind,
    listed,
    missing_column,
    stored_values,
    value_blocks,
)
from sae_transcoder.process.progress import progress

LAYOUT = 1  # raised when files are read in another way, so that Arrow files of older versions are left alone
ROWS_IN_MEMORY = 100  # before they are written


def open_files(paths: list[Path], column: str, wanted: Wanted, arrow_folder: Path) -> Any:
    """The column of the files, which are of one kind, in their order, as a `datasets.Dataset`, which may be empty.

    arrow_folder: where the Arrow file is kept, for the next run too. Raises ConfigError for files that cannot be read, lack the column or hold
    something else there.
    """
    names = [str(path) for path in paths]
    kind = file_kind(paths[0])
    return (
        open_parquet(names, column, wanted, arrow_folder) if kind == "parquet" else open_lines(names, column, wanted, arrow_folder)
    )


def check_column(paths: list[Path], column: str, wanted: Wanted) -> None:
    """Raises ConfigError where the first file lacks the column, or has something else than what is wanted before its first value there."""
    path, kind = str(paths[0]), file_kind(paths[0])
    if kind == "parquet":
        parquet_type(path, column, wanted)
    elif kind is not None:  # the first rows of a JSON file may lack a column that others have
        next((values for values in value_blocks(path, kind, column, wanted) if any(value is not None for value in values)), None)


def open_lines(names: list[str], column: str, wanted: Wanted, arrow_folder: Path) -> Any:
    """The column of text, JSON or CSV files."""
    import datasets

    if next(arrow_rows(tuple(names), column, wanted), None) is None:
        return datasets.Dataset.from_dict({column: []})

    key = json.dumps([LAYOUT, column, wanted, [file_identity(Path(name)) for name in names]])
    first = f"{names[0]}{f' and {len(names) - 1:,} more' if len(names) > 1 else ''}"
    try:
        with progress(f"reading {first}", None, "documents") as show:
            rows = datasets.Dataset.from_generator(
                shown_rows,
                features=column_features(column, wanted),
                cache_dir=str(arrow_folder),
                # A tuple: datasets cuts lists into shards.
                gen_kwargs={"names": tuple(names), "column": column, "wanted": wanted, "show": show},
                fingerprint=hashlib.sha256(key.encode()).hexdigest()[:16],
                writer_batch_size=ROWS_IN_MEMORY,
            )
    except datasets.exceptions.DatasetGenerationError as error:
        raise (error.__cause__ if isinstance(error.__cause__, ConfigError) else error) from None
    if wanted is not None:
        return rows
    return rows.with_transform(lambda batch: {column: [json.loads(value) for value in batch[column]]})


def arrow_rows(names: tuple[str, ...], column: str, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """Yields the rows as they are written to the Arrow file."""
    for name in names:
        kind = file_kind(name)
        assert kind is not None
        for values in value_blocks(name, kind, column, wanted):
            yield from ({column: value} for value in stored_values(values, wanted))


def shown_rows(names: tuple[str, ...], column: str, wanted: Wanted, show: Callable[[int], None]) -> Iterator[dict[str, Any]]:
    """The same; calls `show` with how many there were."""
    for number, row in enumerate(arrow_rows(names, column, wanted), 1):
        show(number)
        yield row


def open_parquet(names: list[str], column: str, wanted: Wanted, arrow_folder: Path) -> Any:
    """The column of Parquet files."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {parquet_type(name, column, wanted) for name in names}
    features = column_features(column, wanted)
    if wanted != "text" and len(types) == 1:  # ids keep their size
        features = datasets.Features.from_arrow_schema(pa.schema([(column, types.pop())]))
    if not any(pq.read_metadata(name).num_rows for name in names):
        return datasets.Dataset.from_dict({column: []})
    files = {"train": [glob.escape(name) for name in names]}  # datasets takes names for patterns
    return datasets.load_dataset(
        "parquet",
        data_files=files,
        split="train",
        cache_dir=str(arrow_folder),
        columns=[column],
        features=features,
        batch_size=PARQUET_BATCH,
    )


def parquet_type(name: str, column: str, wanted: Wanted) -> Any:
    """The type of a Parquet file's column. Raises ConfigError where the file lacks it or it is not what is wanted."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(name)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"dataset_name: {name}: cannot be read as Parquet ({error}); mend the file or leave it out") from error
    if column not in schema.names:
        raise missing_column(name, column, wanted, schema.names)
    given = schema.field(column).type
    given = given.value_type if pa.types.is_dictionary(given) else given
    if not fits(given, wanted):
        field, what = ("tokens_column", "lists of token ids") if wanted == "ids" else ("text_column", "text")
        raise ConfigError(
            f"{field}={column}: {name} holds {given} there, not {what}; choose another; it has {listed(schema.names)}"
        )
    return given


def fits(given: Any, wanted: Wanted) -> bool:
    """Whether a column of this Arrow type holds what is wanted; one of nulls alone holds no text."""
    from pyarrow import types

    if wanted == "text":
        return any(is_type(given) for is_type in (types.is_string, types.is_large_string, types.is_string_view, types.is_null))
    if wanted == "ids":
        is_list = types.is_list(given) or types.is_large_list(given) or types.is_fixed_size_list(given)
        return is_list and (types.is_integer(given.value_type) or types.is_null(given.value_type))
    return True
