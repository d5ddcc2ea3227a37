"""Reads and writes one run's files. They check every value: a crash, an editor or another version may have left anything there.

Each returns None or {} where there is no file, and raises ValueError or OSError where it cannot be read. Nothing here imports torch.
Only read_curve reads all of metrics.jsonl; read_last reads its end.
"""

import json
import math
import re
import typing
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import yaml
from omegaconf import OmegaConf

from sae_transcoder.config import FIELDS, Config, run_dir
from sae_transcoder.config.type_checks import ANNOTATIONS, is_of_type
from sae_transcoder.process.atomic_files import replace_text
from sae_transcoder.run_store import eval_file, status
from sae_transcoder.run_store.eval_file import CoderMetrics, Evaluation, TogetherMetrics
from sae_transcoder.run_store.status import Status

CONFIG = Path(".hydra") / "config.yaml"
METRICS = "metrics.jsonl"
BLOCK = 16_384  # bytes of metrics.jsonl that read_last tries first
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C loader is ten times as fast


def plain_type(annotation: Any) -> type:
    """The type of a field's values in a file, apart from null: bool, int, float, str or list."""
    options = [option for option in typing.get_args(annotation) or [annotation] if option is not NoneType]
    if typing.get_origin(annotation) is list or typing.get_origin(options[0]) is list:
        return list
    return str if issubclass(options[0], str) else options[0]


TYPES = {name: plain_type(annotation) for name, annotation in ANNOTATIONS.items()}
"""{field of Config: its plain_type}; a field that may be a list in place of a text has that of the text."""


def read_status(directory: Path) -> Status | None:
    """The status that a run last reported."""
    reported = status.read(directory)
    if reported is None:
        return None
    invalid = [name for name in ("step", "total", "tokens") if not is_integer(getattr(reported, name))]
    invalid += [name for name in ("tokens_per_s", "heartbeat") if not is_number(getattr(reported, name))]
    if invalid:
        raise ValueError(f"{directory / status.NAME}: {', '.join(invalid)} not a number")
    why, job = (None if value is None else printable(str(value)) for value in (reported.why, reported.slurm_job))
    return replace(reported, why=why, slurm_job=job)


def write_config(cfg: Config) -> None:
    """Writes a run's config.yaml, as Hydra does for a single run."""
    path = run_dir(cfg) / CONFIG
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, OmegaConf.to_yaml(OmegaConf.create({name: getattr(cfg, name) for name in FIELDS})))


def read_config(directory: Path) -> dict[str, Any]:
    """The fields of Config in a run's config.yaml, as plain values; {} without the file."""
    path = directory / CONFIG
    try:
        values = yaml.load(path.read_text(), LOADER)
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: not a config")
    config = {name: values[name] for name in FIELDS if name in values}
    for name, value in config.items():
        kind: Any = TYPES[name]
        if kind is float and (number := as_number(value)) is not None:
            value = config[name] = float(number)
        if isinstance(value, list) and is_of_type(value, ANNOTATIONS[name]):
            continue
        if value is not None and (type(value) is not kind or not all(map(is_setting, value if kind is list else [value]))):
            raise ValueError(f"{path}: {name} is {value!r}, not of type {kind.__name__}")
    return config


def read_evaluation(directory: Path) -> Evaluation | None:
    """A run's held-out metrics."""
    evaluation = eval_file.read(directory)
    if evaluation and not (all(map(is_valid_coder, evaluation.coders)) and all(map(is_valid_together, evaluation.together))):
        raise ValueError(f"{directory / eval_file.NAME}: holds something else than metrics")
    return evaluation


def is_valid_coder(coder: CoderMetrics) -> bool:
    """Whether each value of a coder has its type."""
    sizes = (coder.d, coder.num_latents, coder.k, 0 if coder.seed is None else coder.seed)
    return (
        isinstance(coder.coder, str)
        and isinstance(coder.hookpoint, str)
        and all(map(is_integer, sizes))
        and are_numbers(coder.metrics)
    )


def is_valid_together(together: TogetherMetrics) -> bool:
    """Whether each value of several coders evaluated together has its type."""
    return isinstance(together.coders, list) and are_numbers(together.metrics)


def are_numbers(metrics: eval_file.Metrics) -> bool:
    """Whether all metrics are numbers; NaN stands for a metric that does not exist."""
    return all(value != value or is_number(value) for value in metrics.values())


def read_densities(directory: Path) -> dict[str, np.ndarray]:
    """{coder: float [latent], the share of tokens on which each latent fires}."""
    densities = eval_file.read_densities(directory)
    if any(
        shares.dtype.kind != "f" or shares.ndim != 1 or not len(shares) or not ((shares >= 0) & (shares <= 1)).all()
        for shares in densities.values()
    ):
        raise ValueError(f"{directory / eval_file.DENSITIES}: holds something else than shares of tokens")
    return densities


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


def read_curve(directory: Path) -> dict[str, list[tuple[float, float]]]:
    """{coder: [(tokens, training FVU)]} from all lines of metrics.jsonl."""
    path = directory / METRICS
    curves: dict[str, list[tuple[float, float]]] = {}
    try:
        rows = parse_lines(path.read_text(), path)
    except FileNotFoundError:
        return {}
    for row in rows:
        for name, value in row.items():
            if name.startswith("fvu/"):
                curves.setdefault(name.removeprefix("fvu/"), []).append((row.get("tokens", math.nan), value))
    return curves


def parse_lines(text: str, path: Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl, NaN for null, without an incomplete last line, which is being written. Raises ValueError."""
    rows = []
    for line in text.split("\n")[:-1]:
        try:
            row = json.loads(line)
            rows.append({name: math.nan if value is None else float(value) for name, value in row.items()})
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"{path}: a line that is not of metrics ({line[:60]!r})") from error
    return rows


def as_number(value: Any) -> float | None:
    """A value of a YAML file as a number, None if it is none. YAML itself reads 1e-3, which has no decimal point, as a string."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value):
        return float(value)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def is_integer(value: object) -> bool:
    """Whether a value is an integer of at most 64 bits, as a table's column holds it."""
    return type(value) is int and abs(value) < 2**63


def is_setting(value: object) -> bool:
    """Whether a value may be that of a setting."""
    return isinstance(value, bool | str) or is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def is_number(value: object) -> bool:
    """Whether a value is a number within the range of 64-bit integers, as a table's column holds it."""
    return isinstance(value, float | int) and not isinstance(value, bool) and abs(value) < 2**63


def printable(text: str) -> str:
    """A text with characters that cannot be encoded, such as odd bytes in a folder's name, replaced by `?`."""
    return text.encode(errors="replace").decode()
