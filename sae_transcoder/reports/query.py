"""Which runs are shown, and in what order: the options `--where` and `--sort`."""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from natsort import natsort_keygen

from sae_transcoder.config import FIELDS
from sae_transcoder.config.spelling import did_you_mean
from sae_transcoder.reports import formats
from sae_transcoder.reports.config_groups import instead_of
from sae_transcoder.reports.errors import ReportError
from sae_transcoder.run_store import run_files, run_records
from sae_transcoder.run_store.eval_file import NAMES
from sae_transcoder.run_store.run_records import Complain, Record

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
KEYS = (
    "run",
    "state",
    "step",
    "total",
    "tokens",
    "tokens_per_s",
    "eta",
    "why",
    *FIELDS,
    "kind",
    *NAMES,
    "never_fired",
    "train_fvu",
    "dead_fraction",
)


def check_key(key: str, sign: str = "", value: str = "") -> str:
    """Returns the key. Raises ReportError, with what to write in place of it, if no run has it. Which data METRIC@DATA names, only the runs can
    tell. sign, value: of its condition, if it is in one."""
    if key in KEYS or ("@" in key and key.partition("@")[0] in NAMES):
        return key
    if fix := instead_of(key, sign, value):
        raise ReportError(f"{key}{sign}{value}: a group of sae-train, and no column here; {fix}")
    all_keys = f"metrics are {', '.join(NAMES)}; fields are those of sae-train --explain"
    raise ReportError(f"{key}: runs have no such field or metric; {did_you_mean(key.lower(), KEYS, all_keys)}")


def condition(text: str) -> Callable[[Mapping[str, Any]], bool]:
    """Returns the test of a run's values that `KEY=VALUE`, or another of OPERATORS, stands for. Raises ReportError."""
    match = re.fullmatch(r"\s*([^=!<>\s]+)\s*(!=|<=|>=|==|=|<|>)(.*)", text, re.DOTALL)
    if not match:
        raise ReportError(f"--where {text}: write KEY=VALUE, or with one of != < <= > >= in place of =")
    key, sign, written = check_key(*match.groups()), match[2], match[3]
    try:
        parsed = yaml.load(written, run_files.LOADER)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ReportError(f"--where {text}: {written} is not a value of YAML; a list is written [6,12]") from None
    wanted: Any = parsed if (as_number := run_files.as_number(parsed)) is None else as_number
    ordered = sign in ("<", "<=", ">", ">=")
    if ordered and (wanted is None or isinstance(wanted, bool | list | dict)):
        raise ReportError(f"--where {text}: {sign} needs a number or a word")

    def holds(values: Mapping[str, Any]) -> bool:
        value = values.get(key)
        if ordered and (value is None or isinstance(value, str) is not isinstance(wanted, str) or isinstance(value, list)):
            return False
        return OPERATORS[sign](value, wanted)

    return holds


def read_selected(folders: Sequence[Path], where: Sequence[str], sort: str | None, warn: Complain) -> list[Record]:
    """The runs below the folders that meet all conditions, sorted. Raises ReportError where there are none."""
    faults: list[str] = []
    records = run_records.read_all(folders, faults.append)
    if not records:
        raise ReportError("\n".join(faults))
    for fault in faults:
        warn(fault)
    return select(records, where, sort)


def select(records: Sequence[Record], where: Sequence[str], sort: str | None) -> list[Record]:
    """The records that meet all conditions, sorted by the key `sort`: falling with a `-` before it, unsorted if None.

    Runs without a value come last. Raises ReportError for unknown keys, and where no run meets the conditions.
    """
    conditions = [condition(text) for text in where]
    rows = [(record, run_records.values(record)) for record in records] if where or sort else [(record, {}) for record in records]
    refuse_unmeasured([*(re.split("[=!<>]", text)[0].strip() for text in where), *([sort.removeprefix("-")] if sort else [])], rows)
    kept = [(record, values) for record, values in rows if all(holds(values) for holds in conditions)]
    if where and rows and not kept:
        keys = dict.fromkeys(re.split("[=!<>]", text)[0].strip() for text in where)
        present = [f"{key} is {distinct([formats.setting(values.get(key)) for _, values in rows])}" for key in keys]
        raise ReportError(f"no run meets --where {' '.join(where)}; in these runs {'; '.join(present)}")
    if sort:
        key = check_key(sort.removeprefix("-"))
        order = natsort_keygen()
        without = [pair for pair in kept if formats.is_missing(pair[1].get(key))]
        ascending = sorted(
            (pair for pair in kept if not formats.is_missing(pair[1].get(key))), key=lambda pair: order(pair[1][key])
        )
        kept = (ascending[::-1] if sort.startswith("-") else ascending) + without
    return [record for record, _ in kept]


def refuse_unmeasured(keys: Sequence[str], rows: Sequence[tuple[Record, Mapping[str, Any]]]) -> None:
    """Raises ReportError for METRIC@DATA where no run was measured on these data."""
    labels = list(dict.fromkeys(label for record, _ in rows for label in record.others))
    for key in keys:
        _, sign, label = key.partition("@")
        if sign and label not in labels:
            have = f"sae-eval has measured {', '.join(labels)}" if labels else "sae-eval has measured none on other data"
            raise ReportError(f"{key}: none of these runs was measured on {label}; {have}")


def distinct(texts: Sequence[str]) -> str:
    """The distinct texts; of more than eight, the first eight and their number."""
    unique = list(dict.fromkeys(texts))
    return ", ".join(unique[:8]) + (f", ... ({len(unique)} values)" if len(unique) > 8 else "")
