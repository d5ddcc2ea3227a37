"""A run's coders for the Hugging Face Hub: sparsify's files, as its `SparseCoder.load_many("user/name")` reads them, with a model card."""

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
)
from sae_transcoder.exports.source import Source, Write

SHOWN = {"fvu": "FVU", "l0": "L0", "ce_loss_score": "CE loss score", "ce_loss_with_sae": "CE loss", "frac_alive": "alive"}
# What is told of a run; folders, accounts and the like are nobody's business.
TOLD = (ModelTypeConfig, ModelConfig, DatasetConfig, ArchitectureConfig, OptimizerConfig, TrainingConfig)
REPOSITORY = "THIS_REPOSITORY"  # in the card, until it is uploaded


def writer(source: Source) -> Write:
    """What writes the coders as they are, training_config.yaml, eval.json where there is one, and README.md."""

    def write(folder: Path) -> None:
        for name, coder in source.coders.items():
            shutil.copytree(coder.place, folder / coder_dir(name))
        names = [field.name for part in TOLD for field in fields(part) if field.name not in ("cache_dir", "finetune")]
        told = {name: source.settings[name] for name in names}
        (folder / "training_config.yaml").write_text(yaml.safe_dump(told, sort_keys=False))
        if source.evaluation:
            shutil.copy(source.path.parent / "eval.json", folder / "eval.json")
        (folder / "README.md").write_text(card(source))

    return write


def card(source: Source) -> str:
    """The model card: what the coders are, how they were trained, how they do, how to load them."""
    settings = source.settings
    kind = "sparse autoencoders" if settings["model_type"] == "sae" else "transcoders"
    head: dict[str, Any] = {
        "library_name": "sparsify",
        "tags": ["sparse-autoencoder" if settings["model_type"] == "sae" else "transcoder"],
    }
    if settings["model_name"].count("/") == 1 and not settings["model_name"].startswith((".", "/", "~")):
        head["base_model"] = settings["model_name"]
    if settings["dataset_kind"] == "hub":
        head["datasets"] = [settings["dataset_name"]]
    first, cfg = next((coder_dir(name), coder.cfg) for name, coder in source.coders.items())
    when = "" if source.path.name == "coders" else f", {source.path.name} of its run"
    lines = [
        *("---", yaml.safe_dump(head, sort_keys=False).strip(), "---", ""),
        *(f"# {kind.capitalize()} for {settings['model_name']}", ""),
        f"{len(source.coders)} {cfg['activation']} {kind}, k = {cfg['k']}, trained with sparsify by SAE-Transcoder on "
        f"{settings['dataset_name']}, in sequences of {settings['max_seq_length']} tokens, with {settings['optimizer']} and the loss "
        f"{settings['loss_fn']}{when}. All settings stand in training_config.yaml.",
        *("", "```python", "from sparsify import SparseCoder", ""),
        *(f'coder = SparseCoder.load_from_hub("{REPOSITORY}", "{first}")', "```", ""),
    ]
    if source.evaluation:
        metrics = [name for name in SHOWN if any(name in coder.metrics for coder in source.evaluation.coders)]
        lines += ["On sequences that were not trained on (all metrics: eval.json):", ""]
        lines += [f"| coder | latents | {' | '.join(SHOWN[name] for name in metrics)} |", f"| --- | --- |{' --- |' * len(metrics)}"]
        for coder in source.evaluation.coders:
            values = " | ".join(f"{coder.metrics[name]:.4f}" if name in coder.metrics else "" for name in metrics)
            lines.append(f"| {coder.coder} | {coder.num_latents:,} | {values} |")
        lines.append("")
    return "\n".join(lines)


def upload(folder: Path, repository: str) -> str:
    """Uploads a folder to a repository of the hub, made where there is none; its address. Raises ConfigError where it cannot be."""
    readme = folder / "README.md"
    readme.write_text(readme.read_text().replace(REPOSITORY, repository))
    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Coders and model card"))
    except Exception as error:  # of many kinds: not found, offline, not logged in, no right to
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(
            f"push={repository}: cannot be uploaded ({reason}); run `hf auth login`, check the name and the network"
        ) from error
