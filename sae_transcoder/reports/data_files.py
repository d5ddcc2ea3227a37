"""All numbers of all runs for other programs: CSV, JSON and Parquet, one row per coder."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_transcoder.config import FIELDS
from sae_transcoder.metric_names import END_TO_END, LEVEL_METRICS, NAMES, THRESHOLD, THRESHOLD_QUANTILES, level_metric
from sae_transcoder.process.atomic_files import replace_file
from sae_transcoder.reports.errors import ReportError
from sae_transcoder.reports.seed_groups import CoderPlace
from sae_transcoder.run_store.eval_file import CoderMetrics
from sae_transcoder.run_store.run_files import TYPES
from sae_transcoder.run_store.run_records import Record, coder_kind, mean_of, on_data
from sae_transcoder.run_store.scores import reasons

TOGETHER = tuple(f"together_{name}" for name in END_TO_END)
THRESHOLDS = (THRESHOLD, *THRESHOLD_QUANTILES)
COLUMN_TYPES: dict[str, type] = (
    {"run": str, "state": str, "step": int, "total": int, "tokens": int, "tokens_per_s": float, "why": str}
    | {name: TYPES[name] for name in FIELDS}
    | {"kind": str}
    | {"coder": str, "hookpoint": str, "seed": int, "d": int, "latents": int, "undefined_scores": str}
    | dict.fromkeys([*NAMES, *TOGETHER, "train_fvu", "dead_fraction", *THRESHOLDS, "shared_latents"], float)
)
"""{column: its type}, without those of `level_columns` and `other_columns`; `num_latents` is the setting, `latents` the number that the coder has."""
LAST_METRICS = {"train_fvu": "fvu", "dead_fraction": "dead_fraction"}
"""{column: its name in metrics.jsonl}"""


def level_columns(records: Iterable[Record]) -> dict[str, type]:
    """{column: its type} of the metrics of Matryoshka coders' nested dictionaries: `fvu_width_512`, for each width that a coder has."""
    coders = [coder for record in records if record.evaluation for coder in record.evaluation.coders]
    widths = sorted({level.width for coder in coders for level in coder.levels})
    return {level_metric(name, width): float for width in widths for name in LEVEL_METRICS}


def other_columns(records: Iterable[Record]) -> dict[str, type]:
    """{column: its type} of the metrics on other data: `fvu@other.jsonl`, for each evaluation beside the runs' own."""
    labels = dict.fromkeys(label for record in records for label in record.others)
    return {on_data(name, label): float for label in labels for name in NAMES}


def coder_rows(records: Sequence[Record], shared: Mapping[CoderPlace, float] | None = None) -> Iterator[dict[str, Any]]:
    """A row for each coder of each run; for a run without an evaluation, one row without a coder. Missing numbers are None.

    All rows have the same columns, those of COLUMN_TYPES, `level_columns` and `other_columns`. `undefined_scores`: which scores of the coder are
    missing and why.

    `train_fvu` and `dead_fraction` are the coder's last values in training; without a coder, the means over the run's coders. shared: {coder: the
    share of its latents that other seeds' coders have too}, for `shared_latents`.
    """
    columns = COLUMN_TYPES | level_columns(records) | other_columns(records)
    for record in records:
        status, run = record.status, dict.fromkeys(columns)
        run |= {"run": record.name, "state": str(status.state), "why": status.why and str(status.why)}
        run |= {"step": status.step, "total": status.total, "tokens": status.tokens, "tokens_per_s": status.tokens_per_s}
        run |= {**record.config, "kind": coder_kind(record.config)}
        coders = record.evaluation.coders if record.evaluation else ()
        for coder in coders:
            found = {"shared_latents": (shared or {}).get((record.directory, coder.coder))}
            yield without_nan(run | coder_values(record, coder) | found)
        if not coders:
            yield without_nan(run | {name: mean_of(record.last, key) for name, key in LAST_METRICS.items()})


def coder_values(record: Record, coder: CoderMetrics) -> dict[str, Any]:
    """The columns of one coder, with the metrics of all coders of its seed in place together."""
    together = record.evaluation.together if record.evaluation else ()
    shared = next((t.metrics for t in together if coder.coder in t.coders), {})
    return (
        {"coder": coder.coder, "hookpoint": coder.hookpoint, "seed": coder.seed, "d": coder.d, "latents": coder.num_latents}
        | {"undefined_scores": "; ".join(f"{score}: {why}" for score, why in reasons(coder.metrics).items()) or None}
        | {name: coder.metrics.get(name) for name in NAMES}
        | {name: shared.get(name.removeprefix("together_")) for name in TOGETHER}
        | {name: record.last.get(f"{key}/{coder.coder}") for name, key in LAST_METRICS.items()}
        | {name: coder.thresholds.get(name) for name in THRESHOLDS}
        | {level_metric(name, level.width): getattr(level, name) for level in coder.levels for name in LEVEL_METRICS}
        | {
            on_data(name, label): value
            for label, other in record.others.items()
            for each in other.evaluation.coders
            if each.coder == coder.coder
            for name, value in each.metrics.items()
        }
    )


def without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with None in place of NaN and infinity."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}


def without_lists(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with lists as JSON text, for formats whose cells hold one value."""
    return {name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()}


def as_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(without_lists, rows))
    return text.getvalue().encode()


def as_json(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return (json.dumps(list(rows), indent=1, allow_nan=False) + "\n").encode()


def as_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    arrow_types = {
        bool: pyarrow.bool_(),
        int: pyarrow.int64(),
        float: pyarrow.float64(),
        str: pyarrow.string(),
        list: pyarrow.string(),
    }
    schema = pyarrow.schema(
        [(name, arrow_types[COLUMN_TYPES.get(name, list if isinstance(value, list) else float)]) for name, value in rows[0].items()]
    )
    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(map(without_lists, rows)), schema), sink)
    return sink.getvalue()


WRITERS: dict[str, Callable[[Sequence[Mapping[str, Any]]], bytes]] = {"csv": as_csv, "json": as_json, "parquet": as_parquet}


def write_file(path: Path, content: bytes) -> Path:
    """Replaces a file atomically, makes its folder if there is none, and returns the path. Raises ReportError where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda file: file.write(content))
    except OSError as error:
        raise ReportError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
    return path
