"""The presets of conf/: which there are, what each sets, and when to choose it."""

import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from sae_transcoder.config.fields import GROUPS
from sae_transcoder.config.fields.optimizer import OPTIMIZERS

PACKAGE = Path(__file__).parents[1]
# conf/ lies beside the package in a clone, inside it in a wheel.
CONF = next((p for p in (PACKAGE / "conf", PACKAGE.parent / "conf") if p.is_dir()), PACKAGE / "conf")


def preset_files(folders: Sequence[Path] = (CONF,)) -> Iterator[tuple[str, str, Path]]:
    """(group, choice, its file) of every preset in folders like conf/, groups in the order of their fields, then those of other names."""
    others = sorted({path.name for folder in folders if folder.is_dir() for path in folder.iterdir() if path.is_dir()} - {*GROUPS})
    for group in (*GROUPS, *others):
        files = {path.stem: path for folder in folders for path in (folder / group).glob("*.yaml")}
        for choice in sorted(files):
            yield group, choice, files[choice]


def choices(folders: Sequence[Path] = (CONF,)) -> dict[str, list[str]]:
    """{group: its choices} in folders like conf/; an optimizer needs no file to be one."""
    by_group: dict[str, list[str]] = {group: [] for group in GROUPS}
    for group, choice, _ in preset_files(folders):
        by_group.setdefault(group, []).append(choice)
    by_group["optimizer"] = sorted({*by_group["optimizer"], *map(str, OPTIMIZERS)})
    return by_group


def groups_with(choice: str, folders: Sequence[Path] = (CONF,)) -> list[str]:
    """The groups that have a choice of this name."""
    return [group for group, names in choices(folders).items() if choice in names]


@functools.cache
def settings_of(path: Path) -> dict[str, Any]:
    """{field: value as YAML reads it} of what a preset sets, with what its bases and the choices in its `defaults` set."""
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    settings: dict[str, Any] = {}
    for entry in content.pop("defaults", []):
        bases = {path.parent.name: entry} if isinstance(entry, str) else {key.split("/")[-1]: base for key, base in entry.items()}
        for group, base in bases.items():
            if (file := CONF / group / f"{base}.yaml").is_file():
                settings |= settings_of(file)
    return settings | content


@functools.cache
def default_choices() -> dict[str, str]:
    """{group: its choice where none is made}, without the groups that have none."""
    entries = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    pairs = [pair for entry in entries if isinstance(entry, dict) for pair in entry.items()]
    return {group: choice for group, choice in pairs if group in GROUPS and choice is not None}


def default_settings() -> dict[str, dict[str, Any]]:
    """{group: what the choice sets that is taken where none is made}."""
    return {group: settings_of(CONF / group / f"{choice}.yaml") for group, choice in default_choices().items()}


def when_to_choose(path: Path) -> str:
    """A preset's first line without its command, which says when to choose it."""
    return first_line(path).partition("   ")[0]


def example(path: Path) -> str:
    """The command in a preset's first line."""
    return first_line(path).partition("   ")[2]


def first_line(path: Path) -> str:
    """The comment at the top of a preset."""
    match = re.search(r"^# (?!@package)(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return match[1] if match else ""


def model_presets(model_name: str) -> list[str]:
    """The choices of the group `model` whose model this is, by the hub's name, its last part as TransformerLens writes it, or the choice's own
    spelt with other signs."""
    asked = {"gpt2-small": "gpt2"}.get(name := model_name.lower(), name)
    names = {choice: settings_of(path).get("model_name", "").lower() for group, choice, path in preset_files() if group == "model"}
    spelt = re.sub(r"[^a-z0-9]", "_", asked)
    return [choice for choice, known in names.items() if asked in (known, known.rpartition("/")[2]) or spelt == choice]


def by_family(models: Sequence[str]) -> list[list[str]]:
    """Choices of the group `model`, those of a family (the name's first part) together, from small to large."""
    families: dict[str, list[str]] = {}
    for choice in sorted(models, key=model_size):
        families.setdefault(choice.split("_")[0], []).append(choice)
    return [families[family] for family in sorted(families)]


def model_size(choice: str) -> int:
    """Layers x width^2 of a preset's model, by its first line; 0 for a preset that does not name them."""
    path = CONF / "model" / f"{choice}.yaml"
    match = re.search(r"(\d+) layers of width (\d+)", first_line(path)) if path.is_file() else None
    return int(match[1]) * int(match[2]) ** 2 if match else 0
