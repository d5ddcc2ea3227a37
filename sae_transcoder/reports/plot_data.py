"""What the plots show of each coder: its point, its training curve, how often its latents fire; numbers only, no drawing."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from natsort import natsorted

from sae_transcoder.reports import formats
from sae_transcoder.reports.columns import COLUMNS, differing_settings
from sae_transcoder.reports.seed_groups import SAME_SETTINGS, CoderPlace
from sae_transcoder.run_store import eval_file, run_files, run_records
from sae_transcoder.run_store.eval_file import CoderMetrics, LevelMetrics
from sae_transcoder.run_store.run_records import Complain, Record
from sae_transcoder.run_store.scores import reasons

CURVE_POINTS = 300  # of one coder, at most
SCORE_LABELS = {
    "ce_loss_score": COLUMNS["ce_loss_score"].header,
    "ce_loss_score_mean_ablation": f"{COLUMNS['ce_loss_score'].header}, mean ablation",
}
MOST_SETTINGS = 6  # by which series are told apart: as many as there are dashes
SERIES_FIELDS = ("model_type", "activation", "matryoshka_widths", "expansion_factor", "num_latents", "model_name")
TOLD_OTHERWISE = ("k", "l0_coefficient", "layers", "hookpoints", "site")  # by axes and panels
BIN = 0.2  # width of a histogram's bins, in decades of density


@dataclass(frozen=True, order=True)
class CoderSize:
    """Number of latents of a coder; `expansion`: its expansion factor where the number is unknown. Series are ordered by it."""

    latents: int
    expansion: int = 0

    def __str__(self) -> str:
        return f"{self.latents:,} latents" if self.latents else f"x{self.expansion}"


@dataclass(frozen=True, order=True)
class Setting:
    """The settings by which runs of the same type, kind and size differ, as `lr=0.01`; its rank among those of the page."""

    rank: int = 0
    text: str = ""


@dataclass(frozen=True, order=True)
class Series:
    """Coders that have one colour and marker, and one legend entry. `kind`: one of run_records.CODER_KINDS, "" where it is unknown."""

    size: CoderSize
    model_type: str
    kind: str
    setting: Setting = Setting()

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.model_type, self.kind, str(self.size), self.setting.text)))


@dataclass(frozen=True)
class Histogram:
    """Latents by log10 of the share of tokens on which they fire. `counts`: of bins that begin at `first` and are BIN wide;
    `never`: latents that never fire; `total`: all latents."""

    first: float
    counts: np.ndarray
    never: int
    total: int


@dataclass(frozen=True)
class PlottedCoder:
    """One coder of one run, or the mean of several coders that differ in their seed alone (seed_means.py).

    `facts`: labels and texts of its tooltip; `curve`: [2, n], tokens and training FVU; `aims_at_k`: whether k sets the sparsity, else
    `l0_coefficient` does; `levels`, `thresholds`: as in eval.json; `place`: its run and name; `no_score`: why ce_loss_score is NaN, "" where it was
    not measured; `setting`: what tells it from coders of the same type, kind and size. Of a mean: `deviations` of its numbers, the `seeds`' coders.
    """

    panel: str
    model_type: str
    size: CoderSize
    k: int
    l0: float
    fvu: float
    ce_loss_score: float
    facts: Sequence[tuple[str, str]]
    curve: np.ndarray
    densities: Histogram | None
    kind: str = ""
    aims_at_k: bool = True
    l0_coefficient: float | None = None
    levels: Sequence[LevelMetrics] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)
    place: CoderPlace | None = None
    deviations: Mapping[str, float] = field(default_factory=dict)
    seeds: Sequence[CoderPlace] = ()
    no_score: str = ""
    setting: Setting = Setting()

    @property
    def series(self) -> Series:
        """The series that the coder is of."""
        return Series(self.size, self.model_type, self.kind, self.setting)


def plotted_coders(records: Sequence[Record], complain: Complain) -> list[PlottedCoder]:
    """Every coder of the runs that is evaluated or has a training curve. `complain` is called with the faults of their files."""
    model_names = {record.config.get("model_name") for record in records if record.config}

    def panel(record: Record, hookpoint: str) -> str:
        return f"{record.config.get('model_name')} {hookpoint}" if len(model_names) > 1 else hookpoint

    evaluated = [(panel(r, c.hookpoint), c) for r in records if r.evaluation for c in r.evaluation.coders]
    widths = {name: coder.d for name, coder in evaluated}
    differing = differing_settings(records)
    settings = series_settings(records)
    plotted = []
    for record in records:
        curves = run_records.read_or_none(run_files.read_curve, record.directory, complain) or {}
        metrics_of = {coder.coder: coder for coder in record.evaluation.coders} if record.evaluation else {}
        densities = run_records.read_or_none(eval_file.read_densities, record.directory, complain) if metrics_of else None
        for name in dict.fromkeys([*metrics_of, *curves]):
            coder = metrics_of.get(name)
            coder_panel = panel(record, coder.hookpoint if coder else name.partition("/")[0])
            size = CoderSize(coder.num_latents) if coder else planned_size(record.config, widths.get(coder_panel, 0))
            metrics = coder.metrics if coder else {}
            l0, fvu, score = (metrics.get(metric, math.nan) for metric in ("l0", "fvu", "ce_loss_score"))
            model_type, k = str(record.config.get("model_type", "coder")), coder.k if coder else record.config.get("k") or 0
            facts = tooltip_facts(record, name, coder, size, differing)
            curve = thin_out(np.array(curves.get(name, [])).reshape(-1, 2).T, CURVE_POINTS)
            histogram = density_histogram(densities[name]) if densities and name in densities else None
            kind = run_records.coder_kind(record.config) or ""
            of_kind = (kind, aims_at_k(record.config), record.config.get("l0_coefficient"))
            found = (coder.levels, coder.thresholds) if coder else ((), {})
            plotted.append(
                PlottedCoder(
                    coder_panel, model_type, size, k, l0, fvu, score, facts, curve, histogram, *of_kind, *found,
                    place=(record.directory, name), no_score=reasons(metrics).get("ce_loss_score", ""),
                    setting=settings.get(record.directory, Setting()),
                )
            )  # fmt: skip
    return plotted


def aims_at_k(config: Mapping[str, Any]) -> bool:
    """Whether k sets the sparsity of a run's coders; for JumpReLU coders l0_coefficient does, where their loss does not aim at k."""
    return config.get("activation") != "jumprelu" or config.get("jumprelu_loss") == "quadratic"


def series_settings(records: Sequence[Record]) -> dict[Path, Setting]:
    """{run: the settings by which it differs from runs of the same type, kind and size}; nothing where these are more than MOST_SETTINGS.

    k, the place of the coders and seeds are told otherwise; what changes no result does not count.
    """
    configs = {record.directory: record.config for record in records if record.config}
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for config in configs.values():
        groups.setdefault(json.dumps([config.get(name) for name in SERIES_FIELDS], default=str), []).append(config)
    names = [
        name
        for name in SAME_SETTINGS
        if name not in (*SERIES_FIELDS, *TOLD_OTHERWISE)
        and any(len({json.dumps(config.get(name), default=str) for config in alike}) > 1 for alike in groups.values())
    ]
    texts = {
        directory: ", ".join(f"{name}={formats.setting(config.get(name))}" for name in names)
        for directory, config in configs.items()
    }
    ordered = natsorted(set(texts.values()))
    if not names or len(ordered) > MOST_SETTINGS:
        return {}
    return {directory: Setting(ordered.index(text), text) for directory, text in texts.items()}


def planned_size(config: Mapping[str, Any], width: int) -> CoderSize:
    """The size of a coder that is not evaluated; width: that of its hookpoint, 0 where unknown."""
    expansion = config.get("expansion_factor") or 0
    latents = config.get("num_latents") or width * expansion
    return CoderSize(latents) if latents else CoderSize(0, expansion)


def tooltip_facts(
    record: Record, name: str, coder: CoderMetrics | None, size: CoderSize, differing: Sequence[str]
) -> list[tuple[str, str]]:
    """The lines of a coder's tooltip, (label, text): its run, its settings, its metrics. differing: fields in which runs differ."""
    facts = {"run": record.name, "coder": name}
    settings = dict.fromkeys(["model_type", "k", *differing])
    values = {**record.config, "kind": run_records.coder_kind(record.config)}
    facts |= {setting: formats.setting(values[setting]) for setting in settings if setting in values}
    facts["latents"] = f"{size.latents:,}" if size.latents else str(size)
    if coder:
        facts["k"] = str(coder.k)
        facts |= {"held-out FVU": formats.fvu(coder.metrics.get("fvu")), "L0": formats.number(".2f")(coder.metrics.get("l0"))}
        why = reasons(coder.metrics)
        for score, label in SCORE_LABELS.items():
            if score in coder.metrics:
                facts[label] = f"- ({why[score]})" if score in why else formats.fvu(coder.metrics[score])
        if (share := eval_file.never_fired(coder.metrics)) is not None:
            facts[COLUMNS["never_fired"].header] = formats.percent(share)
        facts |= {f"FVU of the first {level.width:,}": formats.fvu(level.fvu) for level in coder.levels[:-1]}
        if coder.thresholds:
            facts["fires above"] = coder.thresholds_in_words()
    for label, other in record.others.items():
        metrics = next((each.metrics for each in other.evaluation.coders if each.coder == name), {})
        facts |= {f"FVU on {label}": formats.fvu(metrics["fvu"])} if "fvu" in metrics else {}
    if (train_fvu := record.last.get(f"fvu/{name}")) is not None:
        facts["train FVU"] = formats.fvu(train_fvu)
    return list(facts.items())


def thin_out(curve: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of a curve's points, evenly spaced, the first and the last among them."""
    kept = np.unique(np.linspace(0, curve.shape[1] - 1, min(most, curve.shape[1])).round().astype(int))
    return curve[:, kept] if curve.shape[1] else curve


def density_histogram(densities: np.ndarray) -> Histogram:
    """The histogram of one coder's densities [latent]."""
    fired = densities[densities > 0]
    if not len(fired):
        return Histogram(0.0, np.zeros(0, int), len(densities), len(densities))
    bins = np.minimum(np.floor(np.log10(fired) / BIN + 1e-9), -1).astype(int)  # what fires on every token is in the last bin
    return Histogram(bins.min() * BIN, np.bincount(bins - bins.min()), int((densities == 0).sum()), len(densities))


def outline(histogram: Histogram) -> np.ndarray:
    """[2, n]: the corners of a step histogram in percent of all latents, from zero to zero; x is log10 of the density."""
    edges = histogram.first + BIN * np.arange(len(histogram.counts) + 1)
    heights = 100 * np.concatenate([[0], np.repeat(histogram.counts, 2), [0]]) / histogram.total
    return np.stack([np.repeat(edges, 2), heights])
