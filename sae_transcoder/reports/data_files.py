"""All numbers of all runs for other programs: CSV, JSON and Parquet, one row per coder."""

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_transcoder.config import FIELDS
from sae_transcoder.reports.query import ReportError
from sae_transcoder.run_store.eval_file import METRICS, NAMES, CoderMetrics
from sae_transcoder.run_store.run_files import TYPES
from sae_transcoder.run_store.run_records import Record, mean_of

TOGETHER = tuple(
    f"together_{name}"
    for category in ("model_behavior_preservation", "model_performance_preservation")
    for name in METRICS[category]
)
KINDS: dict[str, type] = (
    {"run": str, "state": str, "step": int, "total": int, "tokens": int, "tokens_per_s": float, "why": str}
    | {name: TYPES[name] for name in FIELDS}
    | {"coder": str, "hookpoint": str, "seed": int, "d": int, "latents": int}
    | dict.fromkeys([*NAMES, *TOGETHER, "train_fvu", "dead_fraction"], float)
)
"""{column: its type}; `num_latents` is the setting, `latents` the coder's number of them."""


def rows(records: Iterable[Record]) -> Iterator[dict[str, Any]]:
    """A row for each coder of each run; one without a coder for a run that is not evaluated. A number that does not exist is None.

    `train_fvu` and `dead_fraction` are the coder's last ones in training, without a coder the means over the run's.
    """
    for record in records:
        found, run = record.status, dict.fromkeys(KINDS)
        run |= {"run": record.name, "state": str(found.state), "why": found.why and str(found.why)}
        run |= {"step": found.step, "total": found.total, "tokens": found.tokens, "tokens_per_s": found.tokens_per_s}
        run |= record.config
        coders = record.evaluation.coders if record.evaluation else ()
        for coder in coders:
            yield existing(run | of_coder(record, coder))
        if not coders:
            yield existing(run | {name: mean_of(record.last, key) for name, key in LAST.items()})


LAST = {"train_fvu": "fvu", "dead_fraction": "dead_fraction"}  # in metrics.jsonl


def of_coder(record: Record, coder: CoderMetrics) -> dict[str, Any]:
    """The columns that belong to one coder, and to it together with the others of its seed."""
    together = record.evaluation.together if record.evaluation else ()
    shared = next((t.metrics for t in together if coder.coder in t.coders), {})
    return (
        {"coder": coder.coder, "hookpoint": coder.hookpoint, "seed": coder.seed, "d": coder.d, "latents": coder.num_latents}
        | {name: coder.metrics.get(name) for name in NAMES}
        | {name: shared.get(name.removeprefix("together_")) for name in TOGETHER}
        | {name: record.last.get(f"{key}/{coder.coder}") for name, key in LAST.items()}
    )


def existing(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row in which what is not a finite number is None."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}


def one_cell(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row in which lists are JSON, for formats whose cells hold one value."""
    return {name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()}


def as_csv(found: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(KINDS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(one_cell, found))
    return text.getvalue().encode()


def as_json(found: Sequence[Mapping[str, Any]]) -> bytes:
    return (json.dumps(list(found), indent=1, allow_nan=False) + "\n").encode()


def as_parquet(found: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    types = {bool: pyarrow.bool_(), int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string(), list: pyarrow.string()}
    schema = pyarrow.schema([(name, types[kind]) for name, kind in KINDS.items()])
    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(map(one_cell, found)), schema), sink)
    return sink.getvalue()


WRITERS: dict[str, Callable[[Sequence[Mapping[str, Any]]], bytes]] = {"csv": as_csv, "json": as_json, "parquet": as_parquet}


def put(path: Path, content: bytes) -> Path:
    """Replaces a file at once, in a folder that is made where there is none. Raises ReportError where that cannot be."""
    beside = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True) if beside.is_file() else None
        raise ReportError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
    return path
