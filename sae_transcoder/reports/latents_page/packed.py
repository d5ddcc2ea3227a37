"""Columns of numbers as text that a script file can hold: little-endian base64 with the type of its numbers, read by assets/shards.js.

`[type, base64]` is a column, `{"lengths": column, "values": column}` a column of lists.
"""

import base64
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Packed = list[str] | dict[str, list[str]]
INTEGERS = ("u1", "u2", "u4", "i1", "i2", "i4")
"""Types of integers, the small ones first; larger ones become f8, exact up to 2^53."""


def pack(values: np.ndarray) -> list[str]:
    """The numbers [n] as a column: floats in their own precision, integers in the smallest type that holds them all."""
    kind = values.dtype.str[1:] if values.dtype.kind == "f" else smallest_type(values)
    return [kind, base64.b64encode(values.astype(f"<{kind}").tobytes()).decode()]


def smallest_type(values: np.ndarray) -> str:
    """The first of INTEGERS that holds all numbers, else f8."""
    lowest, highest = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    fitting = (kind for kind in INTEGERS if np.iinfo(kind).min <= lowest and highest <= np.iinfo(kind).max)
    return next(fitting, "f8")


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """A column of numbers [row]; null is NaN among floats, -1 among integers."""
    missing = float("nan") if pa.types.is_floating(column.type) else -1
    return pc.fill_null(column, missing).to_numpy()


def lists(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Of a column of lists their lengths [row], null being empty, and all their values [sum of lengths]."""
    return pc.fill_null(pc.list_value_length(column), 0).to_numpy(), pc.list_flatten(column).to_numpy()


def pack_lists(column: pa.ChunkedArray) -> dict[str, list[str]]:
    """A column of lists of numbers."""
    lengths, values = lists(column)
    return {"lengths": pack(lengths), "values": pack(values)}


def pack_column(column: pa.ChunkedArray) -> Any:
    """A column as it lies in Parquet: numbers, lists of numbers, or texts, which stay a JSON list."""
    if pa.types.is_list(column.type):
        return pack_lists(column)
    return column.to_pylist() if pa.types.is_string(column.type) else pack(numbers(column))


def script(key: str, value: Any) -> str:
    """The script file that hands a value to the page under that key. ASCII alone: no character of a token can end a line or string."""
    return f"register({json.dumps(key)}, {json.dumps(value, separators=(',', ':'))});\n"
