"""`sae-train --explain k`, or `sae-train k --help`: all that is known of a field, a group, a choice or a metric."""

import argparse
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from sae_transcoder.config.checks import AT_LEAST, AT_MOST
from sae_transcoder.config.command_help import WIDTH
from sae_transcoder.config.errors import ConfigError
from sae_transcoder.config.explain_group import (
    choice_lines,
    column_lines,
    further_names,
    group_lines,
    labelled,
    metric_lines,
)
from sae_transcoder.config.field_index import field_index
from sae_transcoder.config.field_meanings import meanings, shown
from sae_transcoder.config.fields import DEFAULTS, FIELDS, GROUPS
from sae_transcoder.config.other_words import DIFFERENT_HERE, OTHER_WORDS
from sae_transcoder.config.presets import default_choices, default_settings, groups_with, preset_files, settings_of
from sae_transcoder.config.shell_words import NAMES
from sae_transcoder.config.type_checks import ANNOTATIONS, EXAMPLES, element_type, wanted
from sae_transcoder.config.unknown_names import name_fault
from sae_transcoder.metric_names import NAMES as METRICS
from sae_transcoder.metric_names import RUN_COLUMNS

OPTION = "--explain"
MANY = 8  # values that the choices of a group give a field: more are not listed one by one
OPEN_RANGES = {
    "lr": "above 0",
    "grad_clip_norm": "above 0",
    "jumprelu_bandwidth": "above 0",
    "decoder_init_norm": "above 0",
    "threshold_beta": "below 1",
    "adam_betas": "two from 0 to below 1",
    "layers": "each at least 0",
}
"""What the checks of a field's group refuse beyond the field's bounds (tested)."""


def names_to_explain(arguments: Sequence[str]) -> list[str] | None:
    """The names that a command line asks about, none of them for all fields; None where it does not ask, or asks for the general help."""
    words = [
        word for argument in arguments for word in (argument.split("=", 1) if argument.startswith(f"{OPTION}=") else [argument])
    ]
    asked = next((word for word in (OPTION, "--help", "-h") if word in words), None)
    if asked is None:
        return None
    names = [word for word in words if word != asked]
    if asked != OPTION and (not names or any("=" in name or name.startswith("-") for name in names)):
        return None
    return names


def explain(names: Sequence[str], own: Mapping[str, str] | None = None) -> NoReturn:
    """Prints what is known of these names, without any every field in a line, and ends the program. Raises ConfigError after that for names that
    are none. own: {name that a command has for itself: its meaning}."""
    parts: list[str] = [] if names else [field_index()]
    faults: list[str] = []
    for name in names:
        try:
            parts.append(f"{name}: {own[name]}" if own and name in own else explanation(name))
        except ConfigError as error:
            faults += error.faults
    if parts:
        print_text("\n\n".join(parts))
    if faults:
        raise ConfigError(*faults)
    sys.exit()


def explanation(name: str) -> str:
    """What is known of a name. Raises ConfigError for a name that is none."""
    return "\n\n".join("\n".join(lines) for lines in lines_about(name))


def lines_about(written: str) -> list[list[str]]:
    """What is known of a field, a group, NAME=VALUE, a choice or a metric: a list of lines for each thing of that name.

    Raises ConfigError for a name that is none.
    """
    name, _, value = written.partition("=")
    if name.lower() in (*METRICS, *RUN_COLUMNS):  # as the table's heads have them: L0, FVU
        name = name.lower()
    if name in GROUPS and value:
        return [choice_lines(name, value)]
    if name in FIELDS:
        return [[*field_lines(name), *(group_lines(name) if name in GROUPS else [])]]
    if name in GROUPS:
        default = labelled("default", default_choices().get(name, "none"))
        return [[f"{name}: a group of presets, {name}=CHOICE", *default, *group_lines(name)]]
    if groups := groups_with(name):
        return [choice_lines(group, name) for group in groups]
    if name in METRICS:
        return [metric_lines(name)]
    if name in RUN_COLUMNS:
        return [column_lines(name)]
    raise ConfigError(name_fault(name, name, None, [*NAMES, *further_names()]))


def field_lines(name: str) -> list[str]:
    """A field's type and range, meaning, default, the presets that set it, its names in other programs, and where it is documented."""
    group, text = next((group, texts[name]) for group, texts in meanings().items() if name in texts)
    annotation = ANNOTATIONS[name]
    owner = next((key for key, owner in GROUPS.items() if owner is not GROUPS["experiment"] and issubclass(owner, group)), None)
    facts = [("default", default_of(name))]
    if name == "objective":
        facts.append(("choices", ", ".join(METRICS)))
    if (element := element_type(annotation)) is not None:
        facts.append(("written as", f"'{name}={EXAMPLES[element]}'"))
    facts += [("group", owner)] if owner and owner != name else []
    facts += [("set to", line) for line in preset_lines(name)]
    if others := [word for word, meaning in OTHER_WORDS.items() if meaning.meaning.startswith(f"called {name} here")]:
        facts.append(("elsewhere", ", ".join(others)))
    facts += [("differs", DIFFERENT_HERE[name])] if name in DIFFERENT_HERE else []
    facts.append(("documented", f"docs/fields.md#{name}"))
    kind = wanted(annotation)
    head = f"{name}: {kind}" + "".join(f"{';' if ' or ' in kind else ','} {bound}" for bound in range_of(name))
    return [
        head,
        *textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  "),
        *(line for label, fact in facts for line in labelled(label, fact)),
    ]


def range_of(name: str) -> list[str]:
    """The bounds of a field's values, in words."""
    bounds = [f"{label} {int(bound[name]):,}" for label, bound in (("at least", AT_LEAST), ("at most", AT_MOST)) if name in bound]
    return bounds + ([OPEN_RANGES[name]] if name in OPEN_RANGES else [])


def default_of(name: str) -> str:
    """A field's value where nothing is said, and the choice of a group that gives it."""
    for group, settings in default_settings().items():
        if name != group and name in settings:
            return f"{shown(settings[name])}, by {group}={default_choices()[group]}"
    return shown(DEFAULTS[name])


def preset_lines(name: str) -> list[str]:
    """For each value that presets give a field: the value and these presets. A group whose choices give it many values stands for them."""
    values: dict[str, dict[str, str]] = {}  # {group: {choice: value}}
    for group, choice, path in preset_files():
        settings = settings_of(path)
        if name in settings and choice != str(settings[name]):  # optimizer=muon says that of itself
            values.setdefault(group, {})[choice] = shown(settings[name])
    by_value: dict[str, dict[str, list[str]]] = {}
    lines = []
    for group, of_group in values.items():
        if len(set(of_group.values())) > MANY:
            lines.append(f"a value of its own by each {group}=CHOICE ({OPTION} {group})")
            continue
        for choice, value in of_group.items():
            by_value.setdefault(value, {}).setdefault(group, []).append(choice)
    for value, by_group in by_value.items():
        named = "; ".join(f"{group}={', '.join(of)}" for group, of in by_group.items())
        lines.append(f"{value} by {named}")
    return lines


def print_text(text: str) -> None:
    """Prints a text that the command line asked for."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # of `sae-train --explain k | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Explain(argparse.Action):
    """`--explain [NAME ...]` of the other commands: prints and ends the program, as --help does."""

    def __init__(self, *arguments: Any, own: Mapping[str, str], **others: Any):
        """own: {setting of this command alone: what it means}."""
        super().__init__(*arguments, **others)
        self.own = own

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Prints what is known of the names in `values`. Exit code 1 with a message for a name that is none."""
        try:
            explain(values, self.own)
        except ConfigError as error:
            parser.exit(1, "".join(f"error: {fault}\n" for fault in error.faults))


def add_explain(parser: argparse.ArgumentParser, own: Mapping[str, str] | None = None) -> None:
    """Gives a command the option `--explain`. own: {setting of this command alone: what it means}."""
    parser.add_argument(
        OPTION,
        nargs="*",
        action=Explain,
        own=own or {},
        metavar="NAME",
        help="all about fields, groups, metrics; without a name each field in a line",
    )
