"""Folders of runs that never ran, written by the functions that write real ones; the numbers look like those of real runs."""

import itertools
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sae_transcoder.metric_names import THRESHOLD_QUANTILES
from sae_transcoder.process.atomic_files import replace_text
from sae_transcoder.run_store import eval_file, status
from sae_transcoder.run_store.eval_file import CoderMetrics, Evaluation, LevelMetrics, TogetherMetrics
from sae_transcoder.run_store.status import State, Status

D = 64
SETTINGS: dict[str, Any] = {
    "model_type": "sae",
    "site": None,
    "layers": [6],
    "hookpoints": None,
    "model_name": "demo",
    "dataset_name": "demo",
    "expansion_factor": 8,
    "num_latents": 0,
    "k": 16,
    "activation": "topk",
    "matryoshka_widths": None,
    "lr": 1e-3,
    "batch_size": 8,
    "max_samples": 4000,
    "init_seeds": [42],
    "corrections": True,
    "run_name": None,
    "save_dir": "outputs",
}

EFFECTS = {
    f"{loss}_{ablation}": value
    for loss, values in {"ce_loss": (5.0, 4.5, 0.1), "kl_div": (2.0, 1.5, 0.1)}.items()
    for ablation, value in zip(("with_ablation", "with_mean_ablation", "ablation_std_error"), values, strict=True)
} | {"ce_loss_mean_ablation_std_error": 0.1, "kl_div_mean_ablation_std_error": 0.1}
"""Ablations that do much."""


def config(**settings: Any) -> dict[str, Any]:
    """Some of the fields of a run's config.yaml."""
    return SETTINGS | settings


def hookpoints(settings: dict[str, Any]) -> list[str]:
    tail = ".mlp" if settings["model_type"] == "transcoder" else ""
    return settings["hookpoints"] or [f"layers.{layer}{tail}" for layer in settings["layers"]]


def coders(settings: dict[str, Any]) -> Iterator[tuple[str, str, int]]:
    """(coder, hookpoint, seed)."""
    seeds = settings["init_seeds"]
    for hookpoint, seed in itertools.product(hookpoints(settings), seeds):
        yield (f"{hookpoint}/seed{seed}" if len(seeds) > 1 else hookpoint), hookpoint, seed


def metrics(settings: dict[str, Any], random: np.random.Generator) -> dict[str, float]:
    k, latents = settings["k"], settings["expansion_factor"] * D
    kind = 1.3 if settings["model_type"] == "transcoder" else 1.0
    fvu = float(kind * 0.9 * k**-0.38 * (latents / 512) ** -0.2 * random.uniform(0.96, 1.04))
    given = {name: float(random.uniform(0.1, 0.9)) for name in eval_file.NAMES}
    return (
        given
        | {
            "fvu": fvu,
            "explained_variance": 1 - fvu,
            "frac_alive": 0.97,
            "l0": k * random.uniform(0.93, 1.0),
            "ce_loss_score": 1 - 0.45 * fvu,
            "ce_loss_without_sae": 3.0,
            "ce_loss_with_sae": 3 + 0.9 * fvu,
            "kl_div_with_sae": 0.8 * fvu,
        }
        | EFFECTS
    )


def write_run(
    directory: Path, settings: dict[str, Any], state: State = State.done, lines: int = 60, evaluated: bool = True
) -> Path:
    """One run's directory."""
    random = np.random.default_rng(tail(settings))
    (directory / ".hydra").mkdir(parents=True, exist_ok=True)
    (directory / ".hydra" / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    total = lines * 10
    step = {State.done: total, State.queued: 0}.get(state, total // 2)
    found = {name: metrics(settings, random) for name, _, _ in coders(settings)}
    rows = []
    for now in range(10, step + 1, 10):
        row: dict[str, float] = {"step": now, "tokens": now * 2048, "lr": 1e-3, "k": settings["k"]}
        for name, values in found.items():
            row[f"fvu/{name}"] = values["fvu"] * (0.9 + 5 * math.exp(-now / total * 9)) * random.uniform(0.97, 1.03)
            row[f"dead_fraction/{name}"] = 0.02
        rows.append(json.dumps(row) + "\n")
    if rows:
        replace_text(directory / "metrics.jsonl", "".join(rows))
    why = {State.failed: "CUDA out of memory: tried to allocate 2 GiB\nset micro_acc_steps=4"}.get(state)
    status.write(directory, Status(state, "1a2b3c4d", step, total, step * 2048, 24000.0 if step else 0.0, why, slurm_job=None))
    if evaluated and state == State.done:
        eval_file.write(directory, evaluation(settings, found, step, random))
    return directory


def evaluation(settings: dict[str, Any], found: dict[str, dict[str, float]], step: int, random: np.random.Generator) -> Evaluation:
    latents = settings["expansion_factor"] * D
    densities = {}
    for name in found:
        density = np.minimum(1.0, settings["k"] / latents * random.lognormal(-0.8, 1.3, latents))
        density[random.random(latents) < 0.03] = 0
        densities[name] = density
    each = [
        CoderMetrics(name, point, seed, D, latents, settings["k"], found[name], levels(settings, found[name]), thresholds(settings))
        for name, point, seed in coders(settings)
    ]
    shared = ("model_behavior_preservation", "model_performance_preservation")
    names = [name for category in shared for name in eval_file.METRICS[category]]
    together = []
    if len(hookpoints(settings)) > 1:
        for seed in settings["init_seeds"]:
            own = [c.coder for c in each if c.seed == seed]
            together.append(TogetherMetrics(own, {name: found[own[0]][name] for name in names}))
    return Evaluation({"eval_samples": 256}, each, together, step, step * 2048, densities)


def levels(settings: dict[str, Any], found: dict[str, float]) -> tuple[LevelMetrics, ...]:
    """Of a Matryoshka coder: worse the smaller they are; the last is the coder itself."""
    widths = settings["matryoshka_widths"] or ()
    shares = [width / widths[-1] for width in widths]
    return tuple(
        LevelMetrics(width, found["fvu"] / share**0.2, found["l0"] * share) for width, share in zip(widths, shares, strict=True)
    )


def thresholds(settings: dict[str, Any]) -> dict[str, float]:
    """Of a batchtopk coder one, of a jumprelu coder quantiles."""
    quantiles = {name: 0.02 + 0.3 * share for name, share in THRESHOLD_QUANTILES.items()}
    return {"batchtopk": {"threshold": 0.4}, "jumprelu": quantiles}.get(settings["activation"], {})


def grid(folder: Path, lines: int = 60, **choices: Sequence[Any]) -> list[Path]:
    """A run for each combination of the choices, {field: values}."""
    combinations = [config(**dict(zip(choices, values, strict=True))) for values in itertools.product(*choices.values())]
    return [write_run(folder / name(settings), settings, lines=lines) for settings in combinations]


def name(settings: dict[str, Any]) -> str:
    return f"{settings['model_type']}-k{settings['k']}-x{settings['expansion_factor']}-{tail(settings):08x}"


def tail(settings: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(settings).encode())
