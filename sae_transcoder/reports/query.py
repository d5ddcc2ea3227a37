"""Which runs are shown, and in what order: `--where` and `--sort`."""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import yaml
from natsort import natsort_keygen

from sae_transcoder.config import FIELDS
from sae_transcoder.run_store import run_files, run_records
from sae_transcoder.run_store.eval_file import NAMES
from sae_transcoder.run_store.run_records import Record

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
KEYS = ("run", "state", "step", "total", "tokens", "tokens_per_s", "eta", "why", *FIELDS, *NAMES, "train_fvu", "dead_fraction")


class ReportError(Exception):
    """What was asked for cannot be done; the message names the fix."""


def plain(value: Any) -> str:
    """A setting as the command line has it."""
    if isinstance(value, list):
        return f"[{','.join(map(plain, value))}]"
    if isinstance(value, float):
        return f"{value:g}"
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)


def known(key: str) -> str:
    """The key, if runs have it. Raises ReportError, with near names."""
    if key in KEYS:
        return key
    alike = [*(name for name in KEYS if key.lower() in name), *get_close_matches(key.lower(), KEYS, n=3, cutoff=0.5)]
    near = list(dict.fromkeys(get_close_matches(key.lower(), alike, n=1, cutoff=0.9) + alike))[:3]
    hint = f"did you mean {' or '.join(near)}?" if near else f"metrics are {', '.join(NAMES)}; fields are those of sae-train --help"
    raise ReportError(f"{key}: runs have no such field or metric; {hint}")


def condition(text: str) -> Callable[[Mapping[str, Any]], bool]:
    """The test that `KEY=VALUE`, or another of OPERATORS, puts to a run's values. Raises ReportError."""
    match = re.fullmatch(r"\s*([^=!<>\s]+)\s*(!=|<=|>=|==|=|<|>)(.*)", text, re.DOTALL)
    if not match:
        raise ReportError(f"--where {text}: write KEY=VALUE, or with one of != < <= > >= in place of =")
    key, sign, written = known(match[1]), match[2], match[3]
    try:
        value = yaml.load(written, run_files.LOADER)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ReportError(f"--where {text}: {written} is not a value of YAML; a list is written [6,12]") from None
    asked: Any = value if (as_number := run_files.as_number(value)) is None else as_number
    ordered = sign in ("<", "<=", ">", ">=")
    if ordered and (asked is None or isinstance(asked, bool | list | dict)):
        raise ReportError(f"--where {text}: {sign} needs a number or a word")

    def holds(values: Mapping[str, Any]) -> bool:
        has = values[key]
        if ordered and (has is None or isinstance(has, str) is not isinstance(asked, str) or isinstance(has, list)):
            return False
        return OPERATORS[sign](has, asked)

    return holds


def select(records: Sequence[Record], where: Sequence[str], sort: str | None) -> list[Record]:
    """The records that meet all conditions, by the key of `sort` (falling with a `-` before it), else as they are.

    What has no value comes last. Raises ReportError for unknown keys and where no run meets the conditions.
    """
    conditions = [condition(text) for text in where]
    rows = [(record, run_records.values(record)) for record in records] if where or sort else [(record, {}) for record in records]
    kept = [(record, values) for record, values in rows if all(holds(values) for holds in conditions)]
    if where and rows and not kept:
        keys = dict.fromkeys(re.split("[=!<>]", text)[0].strip() for text in where)
        there = [f"{key} is {some([plain(values[key]) for _, values in rows])}" for key in keys]
        raise ReportError(f"no run meets --where {' '.join(where)}; in these runs {'; '.join(there)}")
    if sort:
        key = known(sort.removeprefix("-"))
        missing = [pair for pair in kept if absent(pair[1][key])]
        order = natsort_keygen()
        there_are = sorted((pair for pair in kept if not absent(pair[1][key])), key=lambda pair: order(pair[1][key]))
        kept = (there_are[::-1] if sort.startswith("-") else there_are) + missing
    return [record for record, _ in kept]


def absent(value: Any) -> bool:
    """Whether there is nothing to sort by."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def some(shown: Sequence[str]) -> str:
    """The distinct values, few of many."""
    distinct = list(dict.fromkeys(shown))
    return ", ".join(distinct[:8]) + (f", ... ({len(distinct)} values)" if len(distinct) > 8 else "")
