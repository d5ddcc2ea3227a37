"""How a value of a run reads in tables, messages and tooltips."""

import math
from collections.abc import Callable
from typing import Any

from sae_transcoder.reports.seed_groups import Spread
from sae_transcoder.run_store import observed_status


def setting(value: Any) -> str:
    """A setting as the command line takes it."""
    if isinstance(value, list):
        return f"[{','.join(map(setting, value))}]"
    if isinstance(value, float):
        return f"{value:g}"
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)


def number(spec: str) -> Callable[[Any], str]:
    """Returns a function that formats a number; a dash is one that does not exist."""
    return lambda value: "-" if is_missing(value) else format(value, spec)


def is_missing(value: Any) -> bool:
    """Whether a value is None or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def fvu(value: float | None) -> str:
    """An FVU with four decimals; from 10 on, as after a divergence, with three digits."""
    return "-" if value is None or is_missing(value) else f"{value:.4f}" if not abs(value) >= 10 else f"{value:.3g}"


def percent(value: float | None) -> str:
    return "-" if value is None or is_missing(value) else f"{100 * value:.1f} %"


def spread(show: Callable[[Any], str]) -> Callable[[Spread | None], str]:
    """Returns a function that formats a mean and its deviation, by the format of one value."""

    def text(value: Spread | None) -> str:
        mean = show(None if value is None else value.mean)
        return mean if value is None or value.std is None or is_missing(value.mean) else f"{mean} ± {show(value.std)}"

    return text


def time_left(seconds: float | None) -> str:
    return "-" if seconds is None else observed_status.duration(seconds)
