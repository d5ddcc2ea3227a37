"""The presets of conf/: which there are, what each sets, and when to choose it."""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sae_transcoder.config.fields import GROUPS

PACKAGE = Path(__file__).parents[1]
# conf/ lies beside the package in a clone, inside it in a wheel.
CONF = next((p for p in (PACKAGE / "conf", PACKAGE.parent / "conf") if p.is_dir()), PACKAGE / "conf")


def preset_files() -> Iterator[tuple[str, str, Path]]:
    """(group, choice, its file) of every preset, groups in the order of their fields."""
    for group in GROUPS:
        for path in sorted((CONF / group).glob("*.yaml")):
            yield group, path.stem, path


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


def when_to_choose(path: Path) -> str:
    """A preset's first line, which says when to choose it."""
    match = re.search(r"^# (?!@package)(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return match[1] if match else ""


def model_presets(model_name: str) -> list[str]:
    """The choices of the group `model` whose model this is."""
    names = {choice: settings_of(path).get("model_name", "") for group, choice, path in preset_files() if group == "model"}
    return [choice for choice, name in names.items() if name.lower() == model_name.lower()]
