"""eval.json and feature_density.npz: held-out metrics on disk, in the layout of SAEBench's core evaluation.

    eval_type_id             "core"
    eval_format              this project's version of the file; another one is refused
    eval_id                  a UUID; datetime_epoch_millis: when
    eval_config              the settings that determine what was measured, on which tokens
    eval_result_metrics      {category: {metric: value}}, each the mean over the coders: see metric_names.py
    eval_result_details      empty: feature densities are in feature_density.npz, {coder: float64 [latent]}
    eval_result_unstructured
      data                   the documents that were held out and the special tokens around texts, as in data.json
      step, tokens           progress of the training; null for coders trained by another program
      coders                 an entry for each: coder, hookpoint, seed, d, num_latents, k, metrics as above
        levels               only of Matryoshka coders: an entry for each nested dictionary, {width, fvu, l0}; the last is the coder itself
        undefined            only of coders with a score that says nothing: {score: why}; see scores.py
        thresholds           only of coders with thresholds, in units of pre-activations: {threshold} where all latents share one (batchtopk),
                             else {threshold_min, _p10, _p25, _p50, _p75, _p90, _max}, quantiles over the latents (jumprelu)
      together               with several hookpoints, an entry for each seed: the coders, and the model's metrics with all in place;
                             undefined as above
    sae_cfg_dict, sae_bench_commit_hash, sae_lens_*   fields of SAEBench that are null or empty here

A metric that is undefined (a division by zero, a model that predicts no tokens, an ablation of too small an effect) is null.
Nothing here imports torch.
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

from sae_transcoder.metric_names import METRICS, NAMES, THRESHOLD, THRESHOLD_QUANTILES
from sae_transcoder.process.atomic_files import replace_file, replace_text
from sae_transcoder.run_store import data_origin
from sae_transcoder.run_store.checked_files import damaged, is_integer, is_number, read_object
from sae_transcoder.run_store.data_origin import UNKNOWN, DataOrigin
from sae_transcoder.run_store.scores import judged, reasons

NAME = "eval.json"
DENSITIES = "feature_density.npz"
FORMAT = 2  # 1 held out the first sequences of the data, often of few documents

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class LevelMetrics:
    """The metrics of a nested dictionary, which is the first `width` latents of a Matryoshka coder; NaN for an undefined one."""

    width: int
    fvu: float
    l0: float


@dataclass(frozen=True)
class CoderMetrics:
    """One coder's metrics {name: value}; NaN for an undefined one. `levels`, `thresholds`: empty for a coder that has none."""

    coder: str
    hookpoint: str
    seed: int | None
    d: int
    num_latents: int
    k: int
    metrics: Metrics
    levels: tuple[LevelMetrics, ...] = ()
    thresholds: Metrics = field(default_factory=dict)

    def thresholds_in_words(self) -> str:
        """The thresholds as one text: the one that all latents share, or their quantiles."""
        if THRESHOLD in self.thresholds:
            return f"{self.thresholds[THRESHOLD]:.4g}"
        names = {name: name.removeprefix("threshold_").replace("p", "") for name in self.thresholds}
        return ", ".join(
            f"{names[name]}{'' if share in (0, 1) else ' %'} {self.thresholds[name]:.4g}"
            for name, share in THRESHOLD_QUANTILES.items()
        )


@dataclass(frozen=True)
class TogetherMetrics:
    """The model's metrics of behaviour and performance with several coders in place at once."""

    coders: Sequence[str]
    metrics: Metrics


@dataclass(frozen=True)
class Evaluation:
    """The contents of an eval.json. `densities`: {coder: share of tokens on which each latent fires}; written, not read back."""

    config: Mapping[str, Any]
    coders: Sequence[CoderMetrics]
    together: Sequence[TogetherMetrics] = ()
    step: int | None = None
    tokens: int | None = None
    densities: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False)
    origin: DataOrigin = UNKNOWN

    def mean(self) -> dict[str, float]:
        """Each metric's mean over the coders."""
        return {
            name: math.fsum(values) / len(values)
            for name in NAMES
            if (values := [c.metrics[name] for c in self.coders if name in c.metrics])
        }


def never_fired(metrics: Metrics) -> float | None:
    """The share of latents that fire on no held-out token; None where it was not measured."""
    return 1 - metrics["frac_alive"] if "frac_alive" in metrics else None


def by_category(metrics: Metrics) -> dict[str, dict[str, float | None]]:
    """{category: {name: value}} as in the file, null for a value that is not finite."""
    return {
        category: {name: finite_or_null(metrics[name]) for name in names if name in metrics}
        for category, names in METRICS.items()
        if any(name in metrics for name in names)
    }


def finite_or_null(value: float) -> float | None:
    """A number as JSON can hold it."""
    return value if math.isfinite(value) else None


def coder_entry(coder: CoderMetrics) -> dict[str, Any]:
    """A coder as in the file, without levels, thresholds and undefined scores of a coder that has none."""
    entry = asdict(coder) | {"metrics": by_category(coder.metrics)}
    entry["levels"] = [{name: finite_or_null(value) for name, value in asdict(level).items()} for level in coder.levels]
    entry["thresholds"] = {name: finite_or_null(value) for name, value in coder.thresholds.items()}
    entry["undefined"] = reasons(coder.metrics)
    return {name: value for name, value in entry.items() if name not in ("levels", "thresholds", "undefined") or value}


def coder_metrics(entry: Mapping[str, Any]) -> CoderMetrics:
    """A coder's entry in the file as it is in code. Raises TypeError and the like for an entry of another shape."""
    levels = tuple(LevelMetrics(**nan_for_null(level)) for level in entry.get("levels", ()))
    more = {"levels": levels, "thresholds": nan_for_null(entry.get("thresholds", {}))}
    return CoderMetrics(**(without_reasons(entry) | {"metrics": judged(flat(entry["metrics"]))} | more))


def together_entry(together: TogetherMetrics) -> dict[str, Any]:
    """Several coders evaluated together, as in the file."""
    undefined = reasons(together.metrics)
    return asdict(together) | {"metrics": by_category(together.metrics)} | ({"undefined": undefined} if undefined else {})


def together_metrics(entry: Mapping[str, Any]) -> TogetherMetrics:
    """The entry in the file of several coders evaluated together, as it is in code."""
    return TogetherMetrics(**(without_reasons(entry) | {"metrics": judged(flat(entry["metrics"]))}))


def without_reasons(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry without what follows from its metrics."""
    return {name: value for name, value in entry.items() if name != "undefined"}


def nan_for_null(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with NaN for null."""
    return {name: math.nan if value is None else value for name, value in values.items()}


def flat(categories: Mapping[str, Mapping[str, float | None]]) -> dict[str, float]:
    """{name: value} as in code, NaN for null."""
    return {name: value for names in categories.values() for name, value in nan_for_null(names).items()}


def write(directory: Path, evaluation: Evaluation) -> None:
    """Replaces feature_density.npz and eval.json in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    replace_file(directory / DENSITIES, lambda file: np.savez_compressed(file, **evaluation.densities))  # type: ignore[arg-type]
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
            "data": {name: value for name, value in asdict(evaluation.origin).items() if name != "heldout_identities"},
            "coders": [coder_entry(coder) for coder in evaluation.coders],
            "together": list(map(together_entry, evaluation.together)),
        },
        "sae_cfg_dict": None,
        "sae_bench_commit_hash": "",
        "sae_lens_id": None,
        "sae_lens_release_id": None,
        "sae_lens_version": None,
    }
    replace_text(directory / NAME, json.dumps(values, indent=2, allow_nan=False) + "\n")


def read(directory: Path, fix: str = "") -> Evaluation | None:
    """The evaluation in a directory, each value of its type; None where there is none. Raises DamagedFile.

    fix: what to do about a damaged file, where it is not to measure the coders in the directory again.
    """
    path, fix = directory / NAME, fix or f"sae-eval {directory} measures again"
    if (values := read_object(path, fix)) is None:
        return None
    try:
        if values["eval_format"] != FORMAT:
            raise ValueError(f"eval_format {values['eval_format']}, this version writes {FORMAT}")
        details = values["eval_result_unstructured"]
        coders = [coder_metrics(entry) for entry in details["coders"]]
        together = list(map(together_metrics, details["together"]))
        origin = data_origin.from_values(details["data"])
        evaluation = Evaluation(values["eval_config"], coders, together, details["step"], details["tokens"], origin=origin)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise damaged(path, f"not an evaluation of this version: {error!r}", fix) from error
    progress = [count for count in (evaluation.step, evaluation.tokens) if count is not None]
    if not (all(map(is_valid_coder, coders)) and all(map(is_valid_together, together)) and all(map(is_integer, progress))):
        raise damaged(path, "holds something else than metrics", fix)
    return evaluation


def is_valid_coder(coder: CoderMetrics) -> bool:
    """Whether each value of a coder has its type."""
    sizes = (coder.d, coder.num_latents, coder.k, 0 if coder.seed is None else coder.seed)
    return (
        isinstance(coder.coder, str)
        and isinstance(coder.hookpoint, str)
        and all(map(is_integer, sizes))
        and are_numbers(coder.metrics)
        and all(is_integer(level.width) and are_numbers({"fvu": level.fvu, "l0": level.l0}) for level in coder.levels)
        and coder.thresholds.keys() in (set(), {THRESHOLD}, THRESHOLD_QUANTILES.keys())
        and are_numbers(coder.thresholds)
    )


def is_valid_together(together: TogetherMetrics) -> bool:
    """Whether each value of several coders evaluated together has its type."""
    return isinstance(together.coders, list) and are_numbers(together.metrics)


def are_numbers(metrics: Metrics) -> bool:
    """Whether all metrics are numbers; NaN stands for a metric that does not exist."""
    return all(value != value or is_number(value) for value in metrics.values())


def read_densities(directory: Path) -> dict[str, np.ndarray]:
    """{coder: float [latent], the share of tokens on which each latent fires}; empty where there are none. Raises DamagedFile."""
    path, fix = directory / DENSITIES, f"sae-eval {directory} measures again"
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            densities = {name: file[name] for name in file.files}
    except Exception as error:  # numpy and zipfile raise many kinds for damaged bytes
        raise damaged(path, repr(error), fix) from error
    if not all(map(are_shares, densities.values())):
        raise damaged(path, "holds something else than shares of tokens", fix)
    return densities


def are_shares(values: np.ndarray) -> bool:
    """Whether these are shares [latent], of at least one latent."""
    return values.dtype.kind == "f" and values.ndim == 1 and len(values) > 0 and bool(((values >= 0) & (values <= 1)).all())
