"""Exports coders for the Hugging Face Hub: their files as they are, which sparsify and `sae_transcoder.api.load_coders` read, and a model card."""

import math
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi

from sae_transcoder.coder.names import coder_dir
from sae_transcoder.config import (
    ArchitectureConfig,
    ConfigError,
    DatasetConfig,
    ModelConfig,
    ModelTypeConfig,
    OptimizerConfig,
    TrainingConfig,
    as_list,
)
from sae_transcoder.config.paths import is_path
from sae_transcoder.exports.source import Source, StoredCoder
from sae_transcoder.exports.targets import WriteFiles
from sae_transcoder.run_store.eval_file import Evaluation, never_fired
from sae_transcoder.run_store.scores import is_worse_than_mean, reasons

CARD_METRICS = {
    "fvu": "FVU", "l0": "L0", "ce_loss_score": "CE loss score", "ce_loss_score_mean_ablation": "against mean ablation",
    "ce_loss_with_sae": "CE loss",
}  # fmt: skip
# The settings that are published; folders, accounts and the like are nobody's business.
PUBLISHED_CONFIGS = (ModelTypeConfig, ModelConfig, DatasetConfig, ArchitectureConfig, OptimizerConfig, TrainingConfig)
PLACEHOLDER = "THIS_REPOSITORY"  # stands in the card for the repository's name until it is uploaded


def writer(source: Source) -> WriteFiles:
    """Returns the function that copies the coders and writes training_config.yaml, README.md and, if the run has one, eval.json."""

    def write_files(out_dir: Path) -> None:
        for name, coder in source.coders.items():
            shutil.copytree(coder.coder_dir, out_dir / coder_dir(name))
        names = [
            field.name for group in PUBLISHED_CONFIGS for field in fields(group) if field.name not in ("cache_dir", "finetune")
        ]
        settings = {name: source.settings[name] for name in names}
        (out_dir / "training_config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        if source.evaluation:
            shutil.copy(source.path.parent / "eval.json", out_dir / "eval.json")
        (out_dir / "README.md").write_text(model_card(source))

    return write_files


def data_of(settings: dict[str, Any]) -> str:
    """What the coders were trained on, in words."""
    name = " and ".join(as_list(settings["dataset_name"]))
    if settings["messages_column"] is None:
        return name
    return f"conversations of {name}" + (", on the assistant's words alone" if settings["train_on"] == "assistant" else "")


def kind_of(coder: StoredCoder, settings: dict[str, Any]) -> str:
    """How the coder selects latents, in words: `k = 32 on average over a batch, trained as nested dictionaries of 512, 2048 latents`."""
    text = f"k = {coder.cfg['k']}"
    if coder.activation == "batchtopk":
        text += " on average over a batch"
    elif coder.activation == "jumprelu" and settings["jumprelu_loss"] == "quadratic":
        text += " as the target of the training"
    elif coder.activation == "jumprelu":
        text = f"with the sparsity loss {settings['jumprelu_loss']}"  # which aims at no k
    if coder.matryoshka_widths is not None:
        text += f", trained as nested dictionaries of {', '.join(map(str, coder.matryoshka_widths))} latents"
    return text


def how_to_load(name: str, coder: StoredCoder) -> list[str]:
    """The card's lines on how to load the coder of that name."""
    if coder.threshold is None:
        load = f'coder = SparseCoder.load_from_hub("{PLACEHOLDER}", "{coder_dir(name)}")'
        return ["", "```python", "from sparsify import SparseCoder", "", load, "```", ""]
    load = f'coder = load_coders("{PLACEHOLDER}")["{name}"]'
    return [
        *("", "```python", "from sae_transcoder.api import load_coders", "", load, "```", ""),
        "A latent fires where its pre-activation lies above the threshold in threshold.safetensors. sparsify loads these coders too, but knows of no "
        f"thresholds: its `SparseCoder` keeps the {coder.cfg['k']} largest latents of each token, which is another function.",
        "",
    ]


def metric_cell(value: float | None) -> str:
    """A metric in the card's table; a dash where it is undefined."""
    return "" if value is None else "-" if math.isnan(value) else f"{value:.4f}"


def heldout_lines(evaluation: Evaluation) -> list[str]:
    """The card's lines on held-out metrics, and why some are undefined."""
    metrics = [metric for metric in CARD_METRICS if any(metric in coder.metrics for coder in evaluation.coders)]
    lines = [
        *("On sequences that were not trained on (all metrics: eval.json):", ""),
        f"| coder | latents | k | {' | '.join(CARD_METRICS[metric] for metric in metrics)} | never fired |",
        f"| --- | --- | --- |{' --- |' * (len(metrics) + 1)}",
    ]
    for coder in evaluation.coders:
        values = " | ".join(metric_cell(coder.metrics.get(metric)) for metric in metrics)
        share = never_fired(coder.metrics)
        lines.append(
            f"| {coder.coder} | {coder.num_latents:,} | {coder.k} | {values} | {'' if share is None else f'{100 * share:.1f} %'} |"
        )
    lines.append("")
    for coder in evaluation.coders:
        for metric, reason in reasons(coder.metrics).items():
            lines += [f"{coder.coder} has no {CARD_METRICS[metric]}: {reason}.", ""] if metric in CARD_METRICS else []
        if is_worse_than_mean(coder.metrics):
            lines += [f"The FVU of {coder.coder} is above 1: it is worse than the mean output at every token.", ""]
    return lines


def model_card(source: Source) -> str:
    """The model card: what the coders are, how they were trained, how to load them, their held-out metrics."""
    settings = source.settings
    kind = "sparse autoencoders" if settings["model_type"] == "sae" else "transcoders"
    name, coder = next(iter(source.coders.items()))
    front_matter: dict[str, Any] = {
        "library_name": "sparsify" if coder.threshold is None else "sae_transcoder",
        "tags": ["sparse-autoencoder" if settings["model_type"] == "sae" else "transcoder"],
    }
    if settings["model_name"].count("/") == 1 and not is_path(settings["model_name"]):
        front_matter["base_model"] = settings["model_name"]
    if settings["dataset_kind"] == "hub":
        front_matter["datasets"] = as_list(settings["dataset_name"])
    begin = f"each begin with the id {', '.join(map(str, source.begin))}" if source.begin else "have no begin token"
    stage = "" if source.path.name == "coders" else f", {source.path.name} of its run"
    lines = [
        *("---", yaml.safe_dump(front_matter, sort_keys=False).strip(), "---", ""),
        *(f"# {kind.capitalize()} for {settings['model_name']}", ""),
        f"{len(source.coders)} {coder.activation} {kind}, {kind_of(coder, settings)}, trained with sparsify by SAE-Transcoder on "
        f"{data_of(settings)}, in sequences of {settings['max_seq_length']} tokens that {begin}, with {settings['optimizer']} and the loss "
        f"{settings['loss_fn']}{stage}. All settings stand in training_config.yaml.",
        *how_to_load(name, coder),
    ]
    if source.evaluation:
        lines += heldout_lines(source.evaluation)
    return "\n".join(lines)


def upload(card_dir: Path, repository: str) -> str:
    """Uploads an export to a repository of the hub, which is made if it does not exist, and returns its URL.

    Raises ConfigError where that is not possible.
    """
    card_path = card_dir / "README.md"
    card_path.write_text(card_path.read_text().replace(PLACEHOLDER, repository))
    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=card_dir, commit_message="Coders and model card"))
    except Exception as error:  # of many kinds: not found, offline, not logged in, no right to
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(
            f"push={repository}: cannot be uploaded ({reason}); run `hf auth login`, check the name and the network"
        ) from error
