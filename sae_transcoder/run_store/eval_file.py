"""eval.json and feature_density.npz: held-out metrics on disk, in the layout of SAEBench's core evaluation.

    eval_type_id             "core"
    eval_format              this project's version of the file; another one is refused
    eval_id                  a UUID; datetime_epoch_millis: when
    eval_config              the settings that say what was measured on which tokens
    eval_result_metrics      {category: {metric: value}}, each the mean over the coders: see metric_names.py
    eval_result_details      empty: features' densities are in feature_density.npz, {coder: float64 [latent]}
    eval_result_unstructured
      step, tokens           how far training was; null for coders that come from elsewhere
      coders                 one for each: coder, hookpoint, seed, d, num_latents, k, metrics as above
      together               with several hookpoints, one for each seed: coders, and what the model then does
    sae_cfg_dict, sae_bench_commit_hash, sae_lens_*   SAEBench's own, here null or empty

A metric that does not exist (a division by zero, a model that predicts no tokens) is null. Nothing here imports torch.
"""

import json
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sae_transcoder.metric_names import METRICS, NAMES
from sae_transcoder.process.atomic_files import replace_text

NAME = "eval.json"
DENSITIES = "feature_density.npz"
FORMAT = 1

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class CoderMetrics:
    """One coder's metrics {name: value}; NaN where one does not exist."""

    coder: str
    hookpoint: str
    seed: int | None
    d: int
    num_latents: int
    k: int
    metrics: Metrics


@dataclass(frozen=True)
class TogetherMetrics:
    """What the model does with several coders in place at once: the metrics of behaviour and performance."""

    coders: Sequence[str]
    metrics: Metrics


@dataclass(frozen=True)
class Evaluation:
    """All that is in an eval.json. `densities`: {coder: share of tokens on which each latent fires}; not read back."""

    config: Mapping[str, Any]
    coders: Sequence[CoderMetrics]
    together: Sequence[TogetherMetrics] = ()
    step: int | None = None
    tokens: int | None = None
    densities: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False)

    def mean(self) -> dict[str, float]:
        """Each metric's mean over the coders."""
        return {
            name: math.fsum(values) / len(values)
            for name in NAMES
            if (values := [c.metrics[name] for c in self.coders if name in c.metrics])
        }


def by_category(metrics: Metrics) -> dict[str, dict[str, float | None]]:
    """Metrics as they lie in the file; what is not finite is null."""
    return {
        category: {name: metrics[name] if math.isfinite(metrics[name]) else None for name in names if name in metrics}
        for category, names in METRICS.items()
        if any(name in metrics for name in names)
    }


def flat(categories: Mapping[str, Mapping[str, float | None]]) -> dict[str, float]:
    """Metrics as they are in code: {name: value}, NaN for null."""
    return {name: math.nan if value is None else value for names in categories.values() for name, value in names.items()}


def write(directory: Path, evaluation: Evaluation) -> None:
    """Replaces feature_density.npz and eval.json in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    beside = directory / f".{DENSITIES}.new"
    with beside.open("wb") as file:
        np.savez_compressed(file, **evaluation.densities)  # type: ignore[arg-type]
    beside.replace(directory / DENSITIES)
    values = {
        "eval_type_id": "core",
        "eval_format": FORMAT,
        "eval_id": str(uuid.uuid4()),
        "datetime_epoch_millis": int(time.time() * 1000),
        "eval_config": dict(evaluation.config),
        "eval_result_metrics": by_category(evaluation.mean()),
        "eval_result_details": [],
        "eval_result_unstructured": {
            "step": evaluation.step,
            "tokens": evaluation.tokens,
            "coders": [asdict(c) | {"metrics": by_category(c.metrics)} for c in evaluation.coders],
            "together": [asdict(t) | {"metrics": by_category(t.metrics)} for t in evaluation.together],
        },
        "sae_cfg_dict": None,
        "sae_bench_commit_hash": "",
        "sae_lens_id": None,
        "sae_lens_release_id": None,
        "sae_lens_version": None,
    }
    replace_text(directory / NAME, json.dumps(values, indent=2, allow_nan=False) + "\n")


def read(directory: Path) -> Evaluation | None:
    """The evaluation kept in a directory; None where there is none. Raises ValueError where it cannot be read."""
    path = directory / NAME
    try:
        values = json.loads(path.read_text())
        if values["eval_format"] != FORMAT:
            raise ValueError(f"eval_format {values['eval_format']}, expected {FORMAT}")
        rest = values["eval_result_unstructured"]
        coders = [CoderMetrics(**(c | {"metrics": flat(c["metrics"])})) for c in rest["coders"]]
        together = [TogetherMetrics(**(t | {"metrics": flat(t["metrics"])})) for t in rest["together"]]
        return Evaluation(values["eval_config"], coders, together, rest["step"], rest["tokens"])
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: not an evaluation of this version ({error!r})") from error


def read_densities(directory: Path) -> dict[str, np.ndarray]:
    """{coder: share of tokens on which each latent fires}; empty where there are none. Raises ValueError for a damaged file."""
    path = directory / DENSITIES
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as kept:
            return {name: kept[name] for name in kept.files}
    except Exception as error:  # numpy and zipfile raise what the damaged byte happens to hit
        raise ValueError(f"{path}: cannot be read ({error!r})") from error
