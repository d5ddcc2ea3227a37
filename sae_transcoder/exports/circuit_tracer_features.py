"""A file for each latent, which circuit-tracer's local page shows where a node of a graph is clicked: its frontend/feature_models.py, 0.5.0.

features/<scan>/<number>.json, where number pairs layer and latent as its frontend/graph_models.py does. The page reads them from its own server
where the scan begins with `./` (feature_examples/init-feature-examples.js); everything else it looks for on the hub.
"""

import json
import re
from pathlib import Path
from typing import Any

from sae_transcoder.exports.activation_distributions import linear_histogram, percentiles
from sae_transcoder.exports.stored_latents import Latent, StoredLatents
from sae_transcoder.run_store.latent_files import TOP

DIGITS = 4  # of an activation


def scan_name(run_dir: Path) -> str:
    """The folder of a run's files below features/."""
    return re.sub(r"[^\w.-]", "_", run_dir.name)


def scan(name: str) -> str:
    """What a graph's `scan` must be so that the page reads DATA/features/<name>/, DATA being the folder that the server was started on."""
    return f"./data/features/{name}"


def paired(layer: int, latent: int) -> int:
    """One number for both: Cantor's pairing."""
    return (layer + latent) * (layer + latent + 1) // 2 + latent


def write_features(folder: Path, by_layer: dict[int, str], latents: StoredLatents) -> None:
    """Writes the files of all latents of these coders {layer: coder} into the new folder."""
    folder.mkdir(parents=True)
    for layer, coder in by_layer.items():
        for some in latents.of(coder):
            for latent in some:
                text = json.dumps(feature(coder, latent, latents), separators=(",", ":"), ensure_ascii=False)
                (folder / f"{paired(layer, latent.number)}.json").write_text(text, encoding="utf-8")


def feature(coder: str, latent: Latent, latents: StoredLatents) -> dict[str, Any]:
    """What circuit-tracer's Model of feature_models.py holds."""
    row, edges = latent.row, latents.about.histogram_edges
    groups: dict[int, list[dict[str, Any]]] = {}
    for context in latent.contexts:
        groups.setdefault(context["range"], []).append(context)
    distribution = (row["histogram"], edges, row["max_activation"])
    return {
        "transcoder_id": coder,
        "index": latent.number,
        "examples_quantiles": [
            {"quantile_name": range_name(number, latents.about.ranges), "examples": [example(c, latents) for c in contexts]}
            for number, contexts in groups.items()
        ],
        "top_logits": latents.shown(row["raised"] or []),
        "bottom_logits": latents.shown(row["lowered"] or []),
        "act_min": 0.0,
        "act_max": row["max_activation"],
        "quantile_values": [significant(value) for value in percentiles(*distribution)],
        "histogram": [significant(value) for value in linear_histogram(*distribution)],
        "activation_frequency": row["density"],
    }


def range_name(number: int, ranges: int) -> str:
    """The heading above the contexts of one range of activations."""
    if number == TOP:
        return "Strongest"
    return f"{number / ranges:.0%} to {(number + 1) / ranges:.0%} of the largest"


def example(context: dict[str, Any], latents: StoredLatents) -> dict[str, Any]:
    """One context; the page centres the token `train_token_ind`."""
    return {
        "tokens_acts_list": [significant(value) for value in context["activations"]],
        "train_token_ind": context["position"] - context["start"],
        "is_repeated_datapoint": False,
        "tokens": latents.shown(context["tokens"]),
    }


def significant(value: float) -> float:
    """The number with few digits, for files a third as large."""
    return float(f"{value:.{DIGITS}g}") if value else 0
