"""One run's files as sae-report meets them: each is read and checked, whatever a crash, a hand or another version left in it.

Readers give None or {} where there is no file, and raise ValueError or OSError where it cannot be read. Nothing here imports torch;
of metrics.jsonl only the end is read, unless a curve is wanted.
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
from sae_transcoder.process.atomic_files import replace_text
from sae_transcoder.run_store import eval_file, status
from sae_transcoder.run_store.eval_file import CoderMetrics, Evaluation, TogetherMetrics
from sae_transcoder.run_store.status import Status

CONFIG = Path(".hydra") / "config.yaml"
METRICS = "metrics.jsonl"
BLOCK = 16_384  # bytes of metrics.jsonl read at first
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is ten times as fast


def plain_type(annotation: Any) -> type:
    """The type that a field's values have in a file: bool, int, float, str or list; null aside."""
    options = [option for option in typing.get_args(annotation) or [annotation] if option is not NoneType]
    if typing.get_origin(annotation) is list or typing.get_origin(options[0]) is list:
        return list
    return str if issubclass(options[0], str) else options[0]


TYPES = {name: plain_type(annotation) for name, annotation in typing.get_type_hints(Config).items()}
"""{field of Config: its plain type}."""


def read_status(directory: Path) -> Status | None:
    """What a run last said of itself."""
    found = status.read(directory)
    if found is None:
        return None
    odd = [name for name in ("step", "total", "tokens") if not whole(getattr(found, name))]
    odd += [name for name in ("tokens_per_s", "heartbeat") if not real(getattr(found, name))]
    if odd:
        raise ValueError(f"{directory / status.NAME}: {', '.join(odd)} not a number")
    why, job = (None if value is None else printable(str(value)) for value in (found.why, found.slurm_job))
    return replace(found, why=why, slurm_job=job)


def write_config(cfg: Config) -> None:
    """Writes a run's config.yaml, as Hydra does for a command."""
    path = run_dir(cfg) / CONFIG
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, OmegaConf.to_yaml(OmegaConf.create({name: getattr(cfg, name) for name in FIELDS})))


def read_config(directory: Path) -> dict[str, Any]:
    """The fields of Config that a run's config.yaml holds, as plain values; {} without the file."""
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
        if value is not None and (type(value) is not kind or not all(map(plain, value if kind is list else [value]))):
            raise ValueError(f"{path}: {name} is {value!r}, not of type {kind.__name__}")
    return config


def read_evaluation(directory: Path) -> Evaluation | None:
    """A run's held-out metrics."""
    found = eval_file.read(directory)
    if found and not (all(map(sound_coder, found.coders)) and all(map(sound_together, found.together))):
        raise ValueError(f"{directory / eval_file.NAME}: holds something else than metrics")
    return found


def sound_coder(coder: CoderMetrics) -> bool:
    """Whether a coder's values are of their types."""
    sizes = (coder.d, coder.num_latents, coder.k, 0 if coder.seed is None else coder.seed)
    return isinstance(coder.coder, str) and isinstance(coder.hookpoint, str) and all(map(whole, sizes)) and sound(coder.metrics)


def sound_together(together: TogetherMetrics) -> bool:
    """The same of several coders."""
    return isinstance(together.coders, list) and sound(together.metrics)


def sound(metrics: eval_file.Metrics) -> bool:
    """Whether metrics are numbers; NaN stands for one that does not exist."""
    return all(value != value or real(value) for value in metrics.values())


def read_densities(directory: Path) -> dict[str, np.ndarray]:
    """{coder: share of tokens on which each latent fires}."""
    found = eval_file.read_densities(directory)
    if any(
        each.dtype.kind != "f" or each.ndim != 1 or not len(each) or not ((each >= 0) & (each <= 1)).all()
        for each in found.values()
    ):
        raise ValueError(f"{directory / eval_file.DENSITIES}: holds something else than shares of tokens")
    return found


def read_last(directory: Path) -> dict[str, float]:
    """The last line of metrics.jsonl that holds losses; {} where there is none."""
    path = directory / METRICS
    try:
        size = path.stat().st_size
        block = BLOCK
        while True:
            with path.open("rb") as file:
                file.seek(max(0, size - block))
                text = file.read().decode(errors="replace")
            if block < size:  # the first line of the block is likely cut
                text = text.partition("\n")[2]
            rows = lines_of(text, path)
            losses = [row for row in rows if any(name.startswith("fvu/") for name in row)]
            if losses or block >= size:
                return losses[-1] if losses else {}
            block *= 8
    except FileNotFoundError:
        return {}


def read_curve(directory: Path) -> dict[str, list[tuple[float, float]]]:
    """{coder: [(tokens, training FVU)]} of all of metrics.jsonl."""
    path = directory / METRICS
    curves: dict[str, list[tuple[float, float]]] = {}
    try:
        rows = lines_of(path.read_text(), path)
    except FileNotFoundError:
        return {}
    for row in rows:
        for name, value in row.items():
            if name.startswith("fvu/"):
                curves.setdefault(name.removeprefix("fvu/"), []).append((row.get("tokens", math.nan), value))
    return curves


def lines_of(text: str, path: Path) -> list[dict[str, float]]:
    """Lines of metrics, NaN for null; a torn last line, which is being written, is left out. Raises ValueError."""
    complete = text.split("\n")[:-1]
    found = []
    for line in complete:
        try:
            row = json.loads(line)
            found.append({name: math.nan if value is None else float(value) for name, value in row.items()})
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"{path}: a line that is not of metrics ({line[:60]!r})") from error
    return found


def as_number(value: Any) -> float | None:
    """A value of a YAML file as a number; YAML itself takes 1e-3, which has no point, for a string. None if it is none."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value):
        return float(value)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def whole(value: object) -> bool:
    """Whether a value is an integer that a table's column can hold."""
    return type(value) is int and abs(value) < 2**63


def plain(value: object) -> bool:
    """Whether a value is one that a setting can have."""
    return isinstance(value, bool | str) or whole(value) or (isinstance(value, float) and math.isfinite(value))


def real(value: object) -> bool:
    """Whether a value is a number that a table's column can hold."""
    return isinstance(value, float | int) and not isinstance(value, bool) and abs(value) < 2**63


def printable(text: str) -> str:
    """A text without what no encoding has, such as the odd bytes of a folder's name."""
    return text.encode(errors="replace").decode()
