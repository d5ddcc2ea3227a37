"""All that is known of a group, of one of its choices, and of a held-out metric, as lines for the terminal."""

import textwrap
from dataclasses import fields
from pathlib import Path

from sae_transcoder.config.command_help import WIDTH
from sae_transcoder.config.errors import ConfigError
from sae_transcoder.config.field_meanings import shown
from sae_transcoder.config.fields import FIELDS, GROUPS
from sae_transcoder.config.group_choices import choice_fault
from sae_transcoder.config.presets import by_family, choices, default_choices, example, preset_files, settings_of, when_to_choose
from sae_transcoder.metric_names import METRICS, RUN_COLUMNS


def labelled(label: str, fact: str) -> list[str]:
    """`label: fact`, in lines."""
    return textwrap.wrap(f"{label}: {fact}", WIDTH, initial_indent="  ", subsequent_indent="    ", break_long_words=False)


def group_lines(group: str) -> list[str]:
    """A group's fields and its choices, each with when to choose it; models by family, from small to large."""
    files = {choice: path for owner, choice, path in preset_files() if owner == group}
    names = choices()[group]
    families = by_family(names) if group == "model" else [names]
    column = max(map(len, names)) + 4
    owned = {field.name for field in fields(GROUPS[group])}
    lines = [] if group == "experiment" else labelled("its fields", ", ".join(name for name in FIELDS if name in owned))
    for family in families:
        if group == "model":
            lines.append("")
        for choice in family:
            text = when_to_choose(files[choice]) if choice in files else ""
            lines += textwrap.wrap(f"{choice:<{column - 2}}{text}", WIDTH, initial_indent="  ", subsequent_indent=" " * column)
    return lines


def choice_lines(group: str, choice: str) -> list[str]:
    """When to choose this, a command with it, and what it sets. Raises ConfigError where there is no such choice."""
    if choice not in choices()[group]:
        raise ConfigError(choice_fault(f"{group}/{choice}", choices()[group]))
    file = next((path for owner, name, path in preset_files() if (owner, name) == (group, choice)), None)
    head = f"{group}={choice}: a choice of the group {group}" + (", the default" if default_choices().get(group) == choice else "")
    return [head, *(file_lines(file) if file else labelled("sets", f"{group}={choice}"))]


def file_lines(file: Path) -> list[str]:
    """What a preset's file says and sets."""
    settings = ", ".join(f"{name}={shown(value)}" for name, value in settings_of(file).items()) or "nothing that is not the default"
    text = textwrap.wrap(when_to_choose(file), WIDTH, initial_indent="  ", subsequent_indent="  ")
    return [*text, *labelled("as in", example(file)), *labelled("sets", settings)]


def metric_lines(name: str) -> list[str]:
    """What a held-out metric means."""
    (meaning,) = (names[name] for names in METRICS.values() if name in names)
    text = textwrap.wrap(meaning, WIDTH, initial_indent="  ", subsequent_indent="  ")
    return [f"{name}: a held-out metric, in eval.json and sae-report", *text, *labelled("documented", "docs/metrics.md")]


def column_lines(name: str) -> list[str]:
    """What a column of sae-report means that is no field and no held-out metric."""
    text = textwrap.wrap(RUN_COLUMNS[name], WIDTH, initial_indent="  ", subsequent_indent="  ")
    return [f"{name}: a column of sae-report", *text, *labelled("documented", "docs/metrics.md")]


def further_names() -> list[str]:
    """The names of choices, metrics and columns, but for those that are fields or groups too."""
    names = {choice for group in choices().values() for choice in group} | {name for part in METRICS.values() for name in part}
    return sorted((names | RUN_COLUMNS.keys()) - {*FIELDS, *GROUPS})
