"""What is said of GROUP=CHOICE where there is no such choice."""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from sae_transcoder.config.fields import GROUPS
from sae_transcoder.config.paths import is_path
from sae_transcoder.config.presets import CONF, groups_with, model_presets
from sae_transcoder.config.spelling import did_you_mean

FILE_SUFFIX = re.compile(r"\.(txt|jsonl?|csv|parquet|md|py)(\.(gz|bz2|zst|lz4))?$", re.IGNORECASE)
IDS_SUFFIX = re.compile(r"\.(bin|npy)$", re.IGNORECASE)

WITH_L1 = ("standard", "vanilla", "relu", "gated", "p_anneal", "gated_anneal")  # kinds of SAEs in SAELens and dictionary_learning


def choice_fault(missing: str, options: Sequence[str]) -> str:
    """The message for a choice that there is not. missing: GROUP/CHOICE, as Hydra names it; options: the group's choices."""
    group = next((name for name in GROUPS if missing.startswith(f"{name}/")), missing.rpartition("/")[0])
    choice = missing.removeprefix(f"{group}/")
    own = {"model": model_fix, "dataset": dataset_fix, "architecture": architecture_fix}.get(group)
    if own and (fix := own(choice)):
        return f"{group}={choice}: there is no such preset; {fix}"
    if missing == "hydra/sweeper/optuna":
        return f"{group}={choice}: needs hydra-optuna-sweeper; run pip install -c constraints.txt -e '.[search]'"
    meant = did_you_mean(choice, options, most=1)
    others = {
        "model": f"; any other model by model_name={choice}",
        "dataset": "; other data by dataset=hub or local_text and dataset_name",
    }
    listed = f"there is no such choice; {meant}{' ' if meant else ''}choose one of {', '.join(options)}"
    return f"{group}={choice}: {listed}{others.get(group, '')}"


def choice_hint(word: str, config_dirs: Sequence[Path]) -> str | None:
    """The message for a choice without its group, as `demo`; None for what is no choice of any."""
    groups = sorted(groups_with(word, [CONF, *config_dirs]), key=lambda group: group != "experiment")
    return f"{word}: write {', or '.join(f'{group}={word}' for group in groups)}" if groups else None


def model_fix(choice: str) -> str | None:
    """What to write for a model's name or path; None for what may be a misspelt preset."""
    setting = shlex.quote(f"model_name={choice}")
    if presets := model_presets(choice):
        return f"write model={presets[0]}" + (f", or {setting}" if "/" in choice else "")
    return f"write {setting}" if "/" in choice or is_path(choice) else None


def dataset_fix(choice: str) -> str | None:
    """What to write for files or a data set of the hub; None for what may be a misspelt preset."""
    name = shlex.quote(f"dataset_name={choice}" if re.fullmatch(r"[\w./~-]+", choice) else f'dataset_name="{choice}"')
    if IDS_SUFFIX.search(choice):
        return f"write dataset=memmap {name}"
    if FILE_SUFFIX.search(choice) or "*" in choice or is_path(choice) or choice.endswith(os.sep):
        return f"write dataset=local_text {name}"
    return f"write dataset=hub {name}" if "/" in choice else None


def architecture_fix(choice: str) -> str | None:
    """What to write for a kind of coder by another program's name; None for what may be a misspelt preset."""
    if choice in WITH_L1:
        return "no loss here has an L1 penalty; write architecture=jumprelu jumprelu_loss=step l0_coefficient=NUMBER, or architecture=topk"
    return "write architecture=matryoshka" if choice in ("matryoshka_batchtopk", "matryoshka_batch_top_k") else None
