"""`sae-train --explain k`, or `sae-train k --help`: all that is known of a field or a group."""

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from sae_transcoder.config.checks import AT_LEAST, AT_MOST
from sae_transcoder.config.errors import ConfigError
from sae_transcoder.config.field_meanings import meanings, shown
from sae_transcoder.config.fields import DEFAULTS, FIELDS, GROUPS
from sae_transcoder.config.other_words import OTHER_WORDS, called
from sae_transcoder.config.presets import preset_files, settings_of, when_to_choose
from sae_transcoder.config.shell_words import NAMES
from sae_transcoder.config.type_checks import ANNOTATIONS, EXAMPLES, element_type, wanted
from sae_transcoder.config.unknown_names import name_fault

WIDTH = 110  # characters of a line
OPTION = "--explain"


def names_to_explain(arguments: Sequence[str]) -> list[str] | None:
    """The names that a command line asks about; None where it asks about none.

    Raises ConfigError where `--explain` is followed by no name, or stands beside something else.
    """
    words = [
        word for argument in arguments for word in (argument.split("=", 1) if argument.startswith(f"{OPTION}=") else [argument])
    ]
    asked = next((word for word in (OPTION, "--help", "-h") if word in words), None)
    names = [word.partition("=")[0] if asked == OPTION else word for word in words if word != asked]
    if asked == OPTION:
        if not names:
            raise ConfigError(f"{OPTION}: name one or more fields or groups, as in {OPTION} k lr")
        return names
    return names if asked and names and all(name in NAMES for name in names) else None


def explanation(names: Sequence[str]) -> str:
    """What is known of these fields and groups. Raises ConfigError for a name that is none."""
    if faults := [name_fault(name, name, None, NAMES) for name in names if name not in NAMES]:
        raise ConfigError(*faults)
    parts = [field_lines(name) if name in FIELDS else [f"{name}: a group of presets, {name}=CHOICE"] for name in names]
    return "\n\n".join("\n".join(lines + choice_lines(name)) for name, lines in zip(names, parts, strict=True))


def field_lines(name: str) -> list[str]:
    """A field's type, meaning, default, the presets that set it, and its names in other programs."""
    group, text = next((group, texts[name]) for group, texts in meanings().items() if name in texts)
    annotation = ANNOTATIONS[name]
    bounds = [f"{label} {bound[name]:,}" for label, bound in (("at least", AT_LEAST), ("at most", AT_MOST)) if name in bound]
    owner = next((key for key, owner in GROUPS.items() if owner is not GROUPS["experiment"] and issubclass(owner, group)), None)
    facts = [("default", shown(DEFAULTS[name]))]
    if (element := element_type(annotation)) is not None:
        facts.append(("written as", f"'{name}={EXAMPLES[element]}'"))
    facts += [("group", owner)] if owner else []
    facts += [("set to", line) for line in preset_lines(name)]
    if others := [word for word, meaning in OTHER_WORDS.items() if meaning == called(name)]:
        facts.append(("elsewhere", ", ".join(others)))
    lines = [
        f"{name}: {', '.join([wanted(annotation), *bounds])}",
        *textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  "),
    ]
    for label, fact in facts:
        lines += textwrap.wrap(f"{label}: {fact}", WIDTH, initial_indent="  ", subsequent_indent="    ", break_long_words=False)
    return lines


def preset_lines(name: str) -> list[str]:
    """For each value that presets give a field: the value and these presets."""
    choices: dict[str, dict[str, list[str]]] = {}
    for group, choice, path in preset_files():
        settings = settings_of(path)
        if name in settings and choice != str(settings[name]):  # optimizer=muon says that of itself
            choices.setdefault(shown(settings[name]), {}).setdefault(group, []).append(choice)
    lines = []
    for value, by_group in choices.items():
        named = "; ".join(f"{group}={', '.join(of)}" for group, of in by_group.items())
        lines.append(f"{value} by {named}")
    return lines


def choice_lines(group: str) -> list[str]:
    """The choices of a group, each with when to choose it."""
    files = [(choice, path) for owner, choice, path in preset_files() if owner == group]
    return [f"  {group}={choice}: {when_to_choose(path)}" for choice, path in files]


def print_explanation(names: Sequence[str]) -> NoReturn:
    """Prints what is known of these fields and groups, and ends the program. Raises ConfigError as `explanation` does."""
    text = explanation(names)
    try:
        print(text, flush=True)
    except BrokenPipeError:  # of `sae-train --explain k | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit()


class Explain(argparse.Action):
    """`--explain FIELD ...` of the other commands: prints and ends the program, as --help does."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Prints what is known of the fields in `values`. Exit code 1 with a message for a name that is none."""
        try:
            print_explanation(values)
        except ConfigError as error:
            parser.exit(1, "".join(f"error: {fault}\n" for fault in error.faults))
