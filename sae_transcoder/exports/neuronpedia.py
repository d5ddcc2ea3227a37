"""Exports latents for Neuronpedia: the folder that its bulk import reads, MODEL/SOURCE/ for each coder.

    release.jsonl model.jsonl sourceset.jsonl source.jsonl    one row each
    features/batch-<i>.jsonl.gz                               a row for each latent
    activations/batch-<i>.jsonl.gz                            a row for each context

The rows' columns are those of the tables that the import fills, which neuronpedia-utils (db_models/) and SAEDashboard write too; what the
pass does not measure is left at their default.
"""

import gzip
import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from sae_transcoder.coder.names import hookpoint_of, seed_of
from sae_transcoder.coder.stored_coders import run_dir_of
from sae_transcoder.config import ConfigError
from sae_transcoder.exports.activation_distributions import BINS, below, linear_histogram
from sae_transcoder.exports.source import Source
from sae_transcoder.exports.stored_latents import Latent, StoredLatents, read_latents
from sae_transcoder.exports.targets import WriteFiles
from sae_transcoder.language_model.transformer_lens_names import MODEL_NAMES
from sae_transcoder.run_store.latent_files import TOP

MODEL_IDS = {"gpt2": "gpt2-small"}
"""{TransformerLens's name of a model: Neuronpedia's}, where it is not the last part of the former."""
CREATOR = "clkht01d40000jv08hvalcvly"  # the id that the import gives what has no creator of its own
NAME_SIGNS = "letters, digits, . and -"
NO_GROUP = -1  # the bin of a strongest context


def writer(source: Source, set: str = "", creator: str = "") -> WriteFiles:
    """Returns the function that writes MODEL/LAYER-SET/ for each coder, with __seed<N> behind it for several seeds.

    set: the name of the source set, by default the run's; creator: who made them. Raises ConfigError without latents/, for coders outside the
    layers, and for names that make no address.
    """
    run_dir = run_dir_of(source.path)
    set_name = set or (run_dir.name.replace("_", "-") if run_dir else "")
    if not set_name.replace("-", "").replace(".", "").isalnum() or not set_name.isascii():
        raise ConfigError(f"set={set_name}: stands in an address, which takes {NAME_SIGNS}; write set=NAME")
    latents = read_latents(source)
    sources = source_names(source.coders, set_name)
    model_id = model_name(source.settings["model_name"])

    def write_files(out_dir: Path) -> None:
        made = {"creatorId": CREATOR, "createdAt": datetime.now(UTC).isoformat()}
        for coder, (own_set, name) in sources.items():
            folder = out_dir / model_id / name
            folder.mkdir(parents=True)
            for table, row in metadata(model_id, own_set, name, creator, latents).items():
                (folder / f"{table}.jsonl").write_text(json.dumps(row | made) + "\n")
            key = {"modelId": model_id, "layer": name}
            for i, some in enumerate(latents.of(coder)):
                rows = (feature(latent, latents) | key | made for latent in some)
                write_rows(folder / "features" / f"batch-{i}.jsonl.gz", rows)
                contexts = (
                    activation(context, latent, latents) | key | made | {"id": identity(model_id, name, context)}
                    for latent in some
                    for context in latent.contexts
                )
                write_rows(folder / "activations" / f"batch-{i}.jsonl.gz", contexts)

    return write_files


def model_name(name: str) -> str:
    """Neuronpedia's id of a model: the last part of TransformerLens's name, but for a few."""
    known = MODEL_NAMES.get(name, name)
    return MODEL_IDS.get(known, known.rstrip("/").rpartition("/")[2])


def source_names(coders: Iterable[str], set_name: str) -> dict[str, tuple[str, str]]:
    """{coder: its source set and its source}. Coders on several modules of the layers are of several sets. Raises ConfigError."""
    places, faults = {}, []
    for coder in coders:
        parts = hookpoint_of(coder).split(".")
        layer = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        if layer is None:
            faults.append(f"{coder}: lies in no layer, and Neuronpedia's sources do; train on other hookpoints")
        else:
            places[coder] = parts[layer], "-".join(parts[layer + 1 :]) or "res"
    if faults:
        raise ConfigError(*faults)
    several = len({module for _, module in places.values()}) > 1
    names = {}
    for coder, (number, module) in places.items():
        own_set = f"{set_name}-{module.replace('_', '-')}" if several else set_name
        names[coder] = own_set, f"{number}-{own_set}" + (f"__{seed_of(coder)}" if seed_of(coder) else "")
    return names


def metadata(model_id: str, set_name: str, name: str, creator: str, latents: StoredLatents) -> dict[str, dict[str, Any]]:
    """{table: its row} of one source, without creatorId and createdAt."""
    of = latents.about
    switched_off = dict.fromkeys(("showDfa", "showCorrelated", "showHeadAttribution", "showUmap"), False)
    no_default = {"defaultSourceSetName": None, "defaultSourceId": None}
    return {
        "release": {"name": set_name, "description": set_name, "descriptionShort": set_name, "creatorName": creator}
        | {
            "creatorNameShort": creator,
            "creatorEmail": None,
            "visibility": "PUBLIC",
            "isNewUi": False,
            "featured": False,
            "urls": [],
        }
        | {"defaultUmapSourceIds": []}
        | no_default,
        "model": {"id": model_id, "instruct": False, "displayName": model_id, "displayNameShort": model_id, "tlensId": None}
        | {"dimension": None, "layers": 0, "neuronsPerLayer": 0, "owner": "", "website": None, "inferenceEnabled": False}
        | {"visibility": "PUBLIC", "updatedAt": datetime.now(UTC).isoformat()}
        | no_default,
        "sourceset": {"modelId": model_id, "name": set_name, "description": set_name, "type": "", "releaseName": set_name}
        | {"creatorName": creator, "creatorEmail": None, "urls": [], "visibility": "PUBLIC", "hasDashboards": True}
        | {"defaultOfModelId": None, "defaultRange": 1, "defaultShowBreaks": True}
        | switched_off,
        "source": {"id": name, "modelId": model_id, "setName": set_name, "visibility": "PUBLIC", "hasDashboards": True}
        | {"dataset": of.dataset_name, "num_prompts": of.sequences, "num_tokens_in_prompt": of.sequence_length, "notes": None}
        | {"inferenceEnabled": False, "inferenceHosts": [], "defaultOfModelId": None, "hfRepoId": None, "hfFolderId": None}
        | dict.fromkeys(("saelensConfig", "saelensRelease", "saelensSaeId"))
        | dict.fromkeys(("hasUmap", "hasUmapLogSparsity", "hasUmapClusters"), False),
    }


def feature(latent: Latent, latents: StoredLatents) -> dict[str, Any]:
    """A latent's row. The distribution of its activations is in BINS parts from 0 to the largest."""
    row, largest = latent.row, latent.row["max_activation"]
    histogram = linear_histogram(row["histogram"], latents.about.histogram_edges, largest)
    others = ("neuron_alignment", "correlated_neurons", "correlated_features")
    empty = [f"{name}_{what}" for name in others for what in ("indices", "values" if "alignment" in name else "pearson", "l1")]
    return {
        "index": str(latent.number),
        "maxActApprox": largest,
        "hasVector": False,
        "vector": [],
        "vectorLabel": None,
        "vectorDefaultSteerStrength": largest,
        "hookName": None,
        "topkCosSimIndices": row["nearest"],
        "topkCosSimValues": row["nearest_cosine"],
        **{name: [] for name in (*empty, "logits_hist_data_bar_heights", "logits_hist_data_bar_values", "decoder_weights_dist")},
        "neg_str": [latents.texts[token] for token in row["lowered"] or []],
        "neg_values": row["lowered_logits"] or [],
        "pos_str": [latents.texts[token] for token in row["raised"] or []],
        "pos_values": row["raised_logits"] or [],
        "frac_nonzero": row["density"],
        "freq_hist_data_bar_heights": histogram,
        "freq_hist_data_bar_values": [largest * (i + 0.5) / BINS for i in range(BINS)],
        "sourceSetName": None,
    }


def activation(context: dict[str, Any], latent: Latent, latents: StoredLatents) -> dict[str, Any]:
    """A context's row. The strongest are in no bin, as SAEDashboard has it; the others in the range of activations that they stand for."""
    values, number = context["activations"], context["range"]
    of, largest = latents.about, latent.row["max_activation"]
    strongest = number == TOP
    bounds = [largest * number / of.ranges, largest * (number + 1) / of.ranges]
    inside = np.diff(below(np.array(bounds), latent.row["histogram"], of.histogram_edges, largest)).item() / latent.row["fires"]
    return {
        "index": str(latent.number),
        "tokens": [latents.texts[token] for token in context["tokens"]],
        "values": values,
        "maxValue": max(values),
        "maxValueTokenIndex": values.index(max(values)),
        "minValue": min(values),
        "qualifyingTokenIndex": context["position"] - context["start"],
        "binMin": NO_GROUP if strongest else bounds[0],
        "binMax": largest if strongest else bounds[1],
        "binContains": NO_GROUP if strongest else inside,  # share of its activations
        "dataIndex": str(context["document"]),
        "dataSource": of.dataset_name,
        "dfaValues": [],
        "dfaTargetIndex": None,
        "dfaMaxValue": None,
        "lossValues": [],
        "logitContributions": None,
    }


def identity(model_id: str, name: str, context: dict[str, Any]) -> str:
    """An id of 25 signs, another one for every context and the same at each export."""
    place = f"{model_id}/{name}/{context['latent']}/{context['range']}/{context['rank']}"
    return "c" + hashlib.sha256(place.encode()).hexdigest()[:24]


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes gzipped JSON lines."""
    path.parent.mkdir(exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=5) as file:
        for row in rows:
            file.write(json.dumps(row, separators=(",", ":"), ensure_ascii=False) + "\n")
