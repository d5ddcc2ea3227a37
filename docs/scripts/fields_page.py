"""Writes docs/fields.md: every field, from the dataclasses of sae_transcoder/config and the docstrings of their fields.

python docs/scripts/fields_page.py
"""

import re
from pathlib import Path

from omegaconf import MISSING

from sae_transcoder.config import DEFAULTS, FIELDS
from sae_transcoder.config.explain_field import field_lines
from sae_transcoder.config.field_meanings import meanings, shown

PAGE = Path(__file__).parents[1] / "fields.md"
OPENING = """# Every field

On the command line a field is `name=value`, and a group is `group=choice`. `sae-train --explain k` prints one field with the presets that set it.

`python docs/scripts/fields_page.py` makes this page from the code.
"""
# Where fields are explained: the page of their group, or one of their own.
GROUP_PAGES = {
    "ModelTypeConfig": "models.md",
    "ModelConfig": "models.md",
    "DatasetConfig": "data.md",
    "ArchitectureConfig": "coders.md",
    "OptimizerConfig": "learning_rates.md",
    "TrainingConfig": "training.md",
    "TrackerConfig": "trackers.md",
    "HardwareConfig": "gpu.md",
    "SlurmConfig": "slurm.md",
    "EvaluationConfig": "evaluation.md",
    "SweepConfig": "sweeps.md",
    "SavingConfig": "training.md",
}
FIELD_PAGES = {
    "max_samples": "training.md",
    "max_seq_length": "training.md",
    "eval_samples": "evaluation.md",
    "grad_clip_norm": "learning_rates.md",
    "init_seeds": "seeds.md",
    "auxk_alpha": "coders.md",
    "corrections": "sparsify.md",
    "log_every": "trackers.md",
    "threads": "training.md",
    "forward_batch_size": "training.md",
    "distribute_modules": "slurm.md",
    "prepare": "slurm.md",
}


def explained_in(group: type, field: str) -> str:
    """The page that explains a field."""
    return FIELD_PAGES.get(field, GROUP_PAGES[group.__name__])


def title(page: str) -> str:
    """A page's first heading."""
    return (PAGE.parent / page).read_text().partition("\n")[0].removeprefix("# ")


def linked(text: str) -> str:
    """A field's meaning as Markdown, with links to the fields and pages that it names."""
    text = text.replace("|", "\\|").replace("<", "&lt;")
    text = re.sub(r"docs/(\w+\.md)", r"[\1](\1)", text)
    return re.sub(rf"`({'|'.join(FIELDS)})(=\w+)?`", r"[`\1\2`](#\1)", text)


def page() -> str:
    """The page as Markdown: a heading for each group of fields, and for each field one with its kind, default and meaning."""
    parts = [OPENING]
    for group, fields in meanings().items():
        heading = (group.__doc__ or "").split("; ")[0].strip().removesuffix(".")
        parts.append(f"## {heading}\n")
        for name, text in fields.items():
            kind = field_lines(name)[0].removeprefix(f"{name}: ")
            where = explained_in(group, name)
            parts.append(f"### `{name}`\n\n{linked(text)}\n")
            default = "Required" if DEFAULTS[name] == MISSING else f"Default `{shown(DEFAULTS[name])}`"
            parts.append(f"{default}; {kind}. See [{title(where)}]({where}).\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
