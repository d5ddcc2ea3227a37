"""What stands on a command line: overrides and options, told apart and in a form that Hydra reads."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sae_transcoder.config.errors import ConfigError
from sae_transcoder.config.fields import PATH_FIELDS
from sae_transcoder.config.paths import local_path
from sae_transcoder.config.shell_words import is_option, take_option, take_rest

# This program's --info stands alone; Hydra's has a topic.
INFO = ("--info", "-i")
INFO_TOPICS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
# Groups among them: a path after dataset= is refused with what to write, and must be readable for that.
MAY_BE_PATHS = (*PATH_FIELDS, "model", "dataset")


class Arguments(NamedTuple):
    """A command line's arguments, each kind in its order."""

    overrides: list[str]
    options: list[str]
    config_dirs: list[Path]  # the values of --config-dir
    faults: list[str]  # of words that are neither


def split_arguments(arguments: Sequence[str]) -> Arguments:
    """Tells overrides from options, which may stand between them; paths among the options are expanded. Raises ConfigError
    for a path that cannot be."""
    split, rest = Arguments([], [], [], []), list(arguments)
    takes_value = {"--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--cfg", "-c", "--package", "-p"}
    while rest:
        argument = rest.pop(0)
        option, _, value = argument.partition("=")
        if argument.startswith("-") and not is_option(argument):
            split.faults.append(take_option(argument, rest))
        elif argument.startswith("-"):
            if (option in takes_value and not value and rest) or (option in INFO and rest and rest[0] in INFO_TOPICS):
                value = rest.pop(0)
            if option in ("--config-dir", "-cd", "--config-path", "-cp"):
                value = str(local_path(value, option))
            split.options.append(f"{option}={value}" if "=" in argument else option)
            if value and "=" not in argument:
                split.options.append(value)
            if option in ("--config-dir", "-cd"):
                split.config_dirs.append(Path(value))
        elif fault := take_rest(argument, rest):
            split.faults.append(fault)
        else:
            split.overrides.extend(quoted([argument]))
    return split


def asks_about_machine(arguments: Sequence[str]) -> bool:
    """Whether a command line is `--info` alone. With a topic behind it the option is Hydra's. Raises ConfigError for anything else beside it."""
    place = next((i for i, argument in enumerate(arguments) if argument in INFO), None)
    if place is None or (arguments[place + 1 : place + 2] and arguments[place + 1] in INFO_TOPICS):
        return False
    if others := " ".join([*arguments[:place], *arguments[place + 1 :]]):
        topics = ", ".join(INFO_TOPICS)
        raise ConfigError(
            f"--info with {others}: it tells of this machine, not of a run; leave out the rest, or write --info TOPIC for what Hydra knows of the "
            f"config, TOPIC one of {topics}"
        )
    return True


def quoted(overrides: Sequence[str]) -> list[str]:
    """The overrides with quotes around paths that begin with `~`, which Hydra's grammar wants; a shell may have taken them off."""
    return [_quoted(override) for override in overrides]


def _quoted(override: str) -> str:
    name, sign, values = override.partition("=")
    if name not in MAY_BE_PATHS or not re.fullmatch(r"[^\s'\"\[\](){}]*", values):
        return override
    return name + sign + ",".join(f'"{value}"' if value.startswith("~") else value for value in values.split(","))
