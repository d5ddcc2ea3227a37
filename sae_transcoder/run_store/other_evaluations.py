"""evals/ of a run: what `sae-eval` has measured of its coders on other data, or with other settings than its own. Nothing here imports torch.

evals/coders/                 of coders/; evals/best/ of best/, evals/snapshots/step... of a snapshot
  <data set>-<hash>/          a folder for each data set and settings
    eval.json, feature_density.npz      as in the run's directory (eval_file)

The run's own eval.json is renewed without them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_transcoder.config import DEFAULTS, as_list
from sae_transcoder.run_store import eval_file
from sae_transcoder.run_store.eval_file import Evaluation

FOLDER = "evals"
# What a data set is; all other settings are told where they are not the run's own.
OF_DATA = (
    "dataset_kind", "dataset_name", "dataset_config", "dataset_weights", "dataset_split", "eval_split", "text_column", "messages_column",
    "train_on", "tokens_column", "tokens_dtype",
)  # fmt: skip
# Decides which metrics there are, and changes none; and what is trained on, which what is held out does not depend on.
NOT_TOLD = ("eval_end_to_end", "max_samples")


@dataclass(frozen=True)
class OtherEvaluation:
    """An evaluation beside the run's own. `label`: its data set by the last part of its name, and what else is not the run's own
    (of other data but the number of sequences); `full_label`: the same with all that tells the evaluation from others."""

    evaluation: Evaluation
    label: str
    full_label: str


def folder_of(root: Path, run_dir: Path) -> Path:
    """Where other evaluations of the coders in the folder `root` of a run are kept."""
    return run_dir / FOLDER / root.relative_to(run_dir)


def folders(root: Path, run_dir: Path) -> list[Path]:
    """The folders of the other evaluations of the coders in `root`, by name."""
    folder = folder_of(root, run_dir)
    return sorted(path.parent for path in folder.glob(f"*/{eval_file.NAME}")) if folder.is_dir() else []


def read(folder: Path) -> Evaluation | None:
    """The evaluation in one of `folders`. Raises DamagedFile."""
    return eval_file.read(folder, "remove the folder; sae-eval with the same settings measures again")


def labelled(evaluation: Evaluation, own: Mapping[str, Any], coders: Iterable[str]) -> OtherEvaluation:
    """An evaluation with its labels. own: the run's settings; coders: the names of its coders, empty where they are not known."""
    config = evaluation.config
    of_data = [
        f"{name}={text(config[name])}" for name in OF_DATA[2:] if name in config and text(config[name]) != text(DEFAULTS[name])
    ]
    parts = [
        text(config[name])
        for name in ("dataset_config", "dataset_split", "eval_split")
        if f"{name}={text(config.get(name))}" in of_data
    ]
    own_data = [own.get(name) for name in OF_DATA[:2]] == [config.get(name) for name in OF_DATA[:2]]
    others = {
        name: f"{name}={text(value)}"
        for name, value in config.items()
        if name not in (*OF_DATA, *NOT_TOLD) and name in own and text(own[name]) != text(value)
    }
    measured = [coder.coder for coder in evaluation.coders]
    if set(coders) - set(measured):
        others["coders"] = ",".join(measured)
    shown = [told for other, told in others.items() if own_data or other != "eval_samples"]
    name = config.get("dataset_name", "")
    return OtherEvaluation(
        evaluation,
        " ".join([short_name(name), *parts, *shown]),
        " ".join([text(config.get("dataset_kind", "")), text(name), *of_data, *others.values()]),
    )


def short_name(dataset_name: Any) -> str:
    """The last part of a data set's name, of a mixture those of all: `other.jsonl`."""
    return "+".join(Path(str(name)).name or str(name) for name in as_list(dataset_name))


def text(value: Any) -> str:
    """A setting as a label has it."""
    if isinstance(value, list):
        return f"[{','.join(map(text, value))}]"
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)


def told_apart(found: Iterable[OtherEvaluation]) -> dict[str, str]:
    """{full label: what an evaluation is called among these}: its label, or where that stands for several data sets the full one."""
    by_label: dict[str, set[str]] = {}
    for other in found:
        by_label.setdefault(other.label, set()).add(other.full_label)
    return {full: label if len(fulls) == 1 else full for label, fulls in by_label.items() for full in sorted(fulls)}
