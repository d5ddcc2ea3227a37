"""What stands on a command line: overrides and options, told apart and in a form that Hydra reads."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sae_transcoder.config.fields import PATH_FIELDS
from sae_transcoder.config.paths import local_path

# What may follow Hydra's --info.
INFO_TOPICS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


class Arguments(NamedTuple):
    """A command line's arguments, each kind in its order."""

    overrides: list[str]
    options: list[str]
    config_dirs: list[Path]  # the values of --config-dir


def split_arguments(arguments: Sequence[str]) -> Arguments:
    """Tells overrides from options, which may stand between them; paths among the options are expanded. Raises ConfigError."""
    split, rest = Arguments([], [], []), list(arguments)
    takes_value = {"--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--cfg", "-c", "--package", "-p"}
    while rest:
        argument = rest.pop(0)
        option, _, value = argument.partition("=")
        if argument.startswith("-"):
            if (option in takes_value and not value and rest) or (option in ("--info", "-i") and rest and rest[0] in INFO_TOPICS):
                value = rest.pop(0)
            if option in ("--config-dir", "-cd", "--config-path", "-cp"):
                value = str(local_path(value, option))
            split.options.append(f"{option}={value}" if "=" in argument else option)
            if value and "=" not in argument:
                split.options.append(value)
            if option in ("--config-dir", "-cd"):
                split.config_dirs.append(Path(value))
        else:
            split.overrides.extend(quoted([argument]))
    return split


def quoted(overrides: Sequence[str]) -> list[str]:
    """The overrides with quotes around paths that begin with `~`, which Hydra's grammar wants; a shell may have taken them off."""
    return [_quoted(override) for override in overrides]


def _quoted(override: str) -> str:
    name, sign, values = override.partition("=")
    if name not in PATH_FIELDS or not re.fullmatch(r"[^\s'\"\[\](){}]*", values):
        return override
    return name + sign + ",".join(f'"{value}"' if value.startswith("~") else value for value in values.split(","))
