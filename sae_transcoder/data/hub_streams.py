"""One column of a data set of the hub, or of a folder that is laid out like one, as a stream; other columns are not looked at."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

from sae_transcoder.data.file_bytes import open_bytes
from sae_transcoder.data.file_values import PARQUET_BATCH, Wanted, column_features, missing_column, stored_values, value_blocks

# Options of a loader that say which files it reads and in how large blocks, or that are obeyed here.
HANDLED = {"name", "version", "data_dir", "data_files", "description", "features", "chunksize", "sep"}


def open_stream(name: str, config_name: str | None, split: str, column: str, wanted: Wanted) -> Any:
    """The column of a split as a `datasets.IterableDataset`. Raises ConfigError where it is missing."""
    import datasets
    from datasets.packaged_modules.csv.csv import Csv
    from datasets.packaged_modules.json.json import Json
    from datasets.packaged_modules.parquet.parquet import Parquet

    builder = datasets.load_dataset_builder(name, config_name)
    if isinstance(builder, Json | Csv) and has_usual_options(builder.config):
        return open_line_files(builder, "json" if isinstance(builder, Json) else "csv", split, column, wanted)
    stream = builder.as_streaming_dataset(split=split)
    names = stream.column_names or list(next(iter(stream), {}))
    if not names:  # no rows either
        return stream
    if column not in names:
        raise missing_column(name, column, wanted, names)
    if isinstance(builder, Parquet):
        builder.config.columns, builder.config.batch_size = [column], PARQUET_BATCH
        if wanted == "text" and is_text(builder.info.features[column]):
            builder.info.features = datasets.Features({column: datasets.Value("large_string")})
        stream = builder.as_streaming_dataset(split=split)
    return stream.select_columns([column])


def open_line_files(builder: Any, kind: str, split: str, column: str, wanted: Wanted) -> Any:
    """The column of JSON or CSV files, read as local ones are: datasets would take the types of all columns from the first block."""
    builder._generate_tables = column_tables(kind, column, wanted, getattr(builder.config, "sep", ","))
    stream = builder.as_streaming_dataset(split=split)
    if stream.info.features is not None:  # those of the card; without any, datasets mixes the shards in another order
        stream.info.features = column_features(column, wanted)
    return stream if wanted is not None else stream.map(lambda row: {column: json.loads(row[column])})


def column_tables(kind: str, column: str, wanted: Wanted, delimiter: str) -> Callable[..., Iterator[tuple[Any, Any]]]:
    """What stands in for a loader's method that yields (key, Arrow table): tables of the one column, as many rows in each as datasets takes."""
    import pyarrow as pa

    schema = column_features(column, wanted).arrow_schema

    def tables(files_iterables: Any, allow_full_read: bool = True, **_: Any) -> Iterator[tuple[Any, Any]]:
        for shard, files in enumerate(files_iterables):
            for file in files:
                if not allow_full_read:
                    refuse_full_read(file)
                for number, values in enumerate(value_blocks(file, kind, column, wanted, delimiter)):
                    array = pa.array(stored_values(values, wanted), schema.field(0).type)
                    yield (shard, number), pa.table([array], schema=schema)

    return tables


def refuse_full_read(file: str) -> None:
    """Raises what tells datasets that a JSON file is one array and so has no first block by which to know its columns, as its loader does."""
    from datasets.packaged_modules.json.json import FullReadDisallowed

    with open_bytes(file) as opened:
        if opened.read(1024).lstrip().startswith(b"["):
            raise FullReadDisallowed


def has_usual_options(config: Any) -> bool:
    """Whether the data set's card leaves the loader's options as they usually are, so that the files may be read as local ones are."""
    usual = type(config)()
    names = {option.name for option in dataclasses.fields(config)} - HANDLED
    return all(getattr(config, name) == getattr(usual, name) for name in names)


def is_text(feature: Any) -> bool:
    """Whether the first file's column holds text, or nothing, where others may hold some."""
    return getattr(feature, "dtype", None) in ("string", "large_string", "string_view", "null")
