"""A run's settings and its lines of metrics. Every value is checked: a crash, an editor or another version may have left anything there.

Each reader returns {} where there is no file, and raises DamagedFile where it cannot be read. Nothing here imports torch.
Only read_metrics reads all of metrics.jsonl; read_last reads its end.
"""

import json
import math
import re
import typing
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from types import NoneType
from typing import Any

import yaml
from omegaconf import OmegaConf

from sae_transcoder.config import FIELDS, Config, run_dir
from sae_transcoder.config.type_checks import ANNOTATIONS, is_of_type
from sae_transcoder.process.atomic_files import replace_text
from sae_transcoder.run_store.checked_files import damaged, is_integer, read_text

CONFIG = Path(".hydra") / "config.yaml"
METRICS = "metrics.jsonl"
LINE_FIX = "correct or remove the line"
BLOCK = 16_384  # bytes of metrics.jsonl that read_last tries first
MetricsRow = dict[str, float]
"""A line of metrics.jsonl {name: value}."""
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C loader is ten times as fast


def plain_type(annotation: Any) -> type:
    """The type of a field's values in a file, apart from null: bool, int, float, str or list."""
    options = [option for option in typing.get_args(annotation) or [annotation] if option is not NoneType]
    if typing.get_origin(annotation) is list or typing.get_origin(options[0]) is list:
        return list
    return str if issubclass(options[0], str) else options[0]


TYPES = {name: plain_type(annotation) for name, annotation in ANNOTATIONS.items()}
"""{field of Config: its plain_type}; a field that may be a list in place of a text has that of the text."""
ADDED: dict[str, Any] = {
    f.name: str(f.default) if isinstance(f.default, StrEnum) else f.default for f in fields(Config) if f.metadata.get("added")
}
"""{field that earlier versions did not have: its default, which is what they did}."""
NULLABLE = {name for name, annotation in ANNOTATIONS.items() if NoneType in typing.get_args(annotation)}


def write_config(cfg: Config) -> None:
    """Writes a run's config.yaml, as Hydra does for a single run."""
    path = run_dir(cfg) / CONFIG
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, OmegaConf.to_yaml(OmegaConf.create({name: getattr(cfg, name) for name in FIELDS})))


def read_config(directory: Path) -> dict[str, Any]:
    """The fields of Config in a run's config.yaml, as plain values; {} without the file. A run of an earlier version has the defaults of
    the fields that were added since."""
    path, fix = directory / CONFIG, "restore it from a copy"
    if (text := read_text(path, fix)) is None:
        return {}
    try:
        values = yaml.load(text, LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise damaged(path, f"not YAML: {' '.join(str(error).split())}", fix) from error
    if not isinstance(values, dict):
        raise damaged(path, "not a config" if values else "empty", fix)
    values = ADDED | values
    config = {name: values[name] for name in FIELDS if name in values}
    for name, value in config.items():
        kind: Any = TYPES[name]
        if kind is float and (number := as_number(value)) is not None:
            value = config[name] = float(number)
        if (value is None and name in NULLABLE) or (isinstance(value, list) and is_of_type(value, ANNOTATIONS[name])):
            continue
        if type(value) is not kind or not all(map(is_setting, value if kind is list else [value])):
            raise damaged(path, f"{name} is {value!r}, not of type {kind.__name__}", fix)
    return config


def read_last(directory: Path) -> dict[str, float]:
    """The last line of metrics.jsonl with losses; {} where there is none."""
    path = directory / METRICS
    try:
        size = path.stat().st_size
        block = BLOCK
        while True:
            with path.open("rb") as file:
                file.seek(max(0, size - block))
                text = file.read().decode(errors="replace")
            if block < size:  # the block may begin in the middle of a line
                text = text.partition("\n")[2]
            rows = parse_lines(text, path)
            losses = [row for row in rows if any(name.startswith("fvu/") for name in row)]
            if losses or block >= size:
                return losses[-1] if losses else {}
            block *= 8
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise damaged(path, error.strerror or error, LINE_FIX) from error


def read_metrics(directory: Path) -> list[MetricsRow]:
    """All lines of metrics.jsonl {name: value}, NaN for null; empty where there is none. Raises DamagedFile."""
    path = directory / METRICS
    return parse_lines(read_text(path, LINE_FIX) or "", path)


def read_curve(directory: Path) -> dict[str, list[tuple[float, float]]]:
    """{coder: [(tokens, training FVU)]} from all lines of metrics.jsonl."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in read_metrics(directory):
        for name, value in row.items():
            if name.startswith("fvu/"):
                curves.setdefault(name.removeprefix("fvu/"), []).append((row.get("tokens", math.nan), value))
    return curves


def parse_lines(text: str, path: Path) -> list[MetricsRow]:
    """The lines of a metrics.jsonl, NaN for null, without an incomplete last line, which is being written. Raises DamagedFile."""
    rows = (parse_line(line, path) for line in text.split("\n")[:-1])
    return [{name: math.nan if value is None else float(value) for name, value in row.items()} for row in rows]


def parse_line(line: str, path: Path) -> dict[str, float | None]:
    """One line of a metrics.jsonl: {name: number, or None}. Raises DamagedFile."""
    try:
        row = json.loads(line)
        if all(value is None or (type(value) in (int, float) and math.isfinite(value)) for value in row.values()):
            return row
    except (ValueError, AttributeError, OverflowError, RecursionError):
        pass
    raise damaged(path, f"a line that is not of metrics: {line[:60]!r}", LINE_FIX)


def as_number(value: Any) -> float | None:
    """A value of a YAML file as a number, None if it is none. YAML itself reads 1e-3, which has no decimal point, as a string."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value):
        return float(value)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def is_setting(value: object) -> bool:
    """Whether a value may be that of a setting."""
    return isinstance(value, bool | str) or is_integer(value) or (isinstance(value, float) and math.isfinite(value))
