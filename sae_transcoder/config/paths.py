"""The paths that settings and arguments name.

A path that begins with `~`, or holds `$NAME` or `${NAME}`, is expanded where it is used, here and nowhere else: the setting itself stays as it
was written, in the run's signature and in its files. (In an override and in YAML `${NAME}` is OmegaConf's, which has `${oc.env:NAME}`.)
"""

import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from sae_transcoder.config.errors import ConfigError
from sae_transcoder.config.spelling import did_you_mean

VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def expanded(text: str | Path, name: str = "") -> str:
    """The text with `~` and variables replaced, otherwise as it is written. name: the field or argument, for messages; empty where it has none.

    Raises ConfigError for a variable that is not set, and for `~USER` where there is no such user.
    """
    text = str(text)
    if os.path.lexists(text):  # whatever characters its name has
        return text
    if missing := [variable for variable in named_variables(text) if variable not in os.environ]:
        which = ", ".join(missing)
        verb = "is" if len(missing) == 1 else "are"
        raise ConfigError(
            f"{label(text, name)}: {which} {verb} not set in the environment; set it there, or write the path in full"
        )
    written = VARIABLE.sub(lambda match: os.environ[match[1] or match[2]], text)
    if not text.startswith("~"):
        return written
    if (at_home := os.path.expanduser(written)) == written:
        user = written[1:].split("/")[0]
        raise ConfigError(
            f"{label(text, name)}: there is no user {user}; write the path in full, or ./{text} for a folder of that name"
        )
    return at_home


def local_path(text: str | Path, name: str = "") -> Path:
    """The path that a setting or an argument names, expanded; whether anything is there is for the caller to see.

    name: as for `expanded`. Raises ConfigError as `expanded` does, for a link that leads nowhere, and for a path that the system does not take.
    """
    path = Path(expanded(text, name))
    if fault := path_fault(path):
        raise ConfigError(f"{label(text, name)}: {fault}")
    return path


def path_fault(path: Path) -> str | None:
    """Why nothing can be read or made at a path: it leads through a link to nowhere, or the system does not take it; with the fix."""
    for place in (path, *path.parents):
        if os.path.islink(place) and not os.path.exists(place):
            return (
                f"{place} is a link to {os.readlink(place)}, where nothing is; correct or remove the link, or choose another path"
            )
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # a name that is too long, a folder that may not be entered; a null byte
        return f"cannot be reached ({error.strerror if isinstance(error, OSError) else error}); choose another path"
    return None


def instead(path: Path) -> str:
    """What lies where the path is not, as a question for the end of a message: folders of a like name, else the first few. Empty where none is."""
    if not path.parent.is_dir():
        return ""
    folders = sorted(entry.name for entry in path.parent.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    first = " or ".join(str(path.parent / name) for name in folders[:3])
    meant = did_you_mean(path.name, folders, f"did you mean {first}?" if first else "", prefix=f"{path.parent}/")
    return f"; {meant}" if meant else ""


def is_path(text: str) -> bool:
    """Whether a text that may also name a model or data set of the hub is a path: by how it begins, by a variable, or since it is there."""
    return text.startswith(("~", ".", "/")) or VARIABLE.search(text) is not None or os.path.lexists(text)


def named_variables(text: str) -> list[str]:
    """The environment variables that a text names."""
    return list(dict.fromkeys(match[1] or match[2] for match in VARIABLE.finditer(text)))


def same_place(one: str, other: str) -> bool:
    """Whether two texts name the same: as they are written, or as paths to the same place."""
    return one == other or place_of(one) == place_of(other)


def place_of(text: str) -> str:
    """Where a path leads in the end; any other text, and a path that cannot be expanded here, as it is."""
    try:
        return os.path.realpath(expanded(text)) if is_path(text) else text
    except ConfigError:
        return text


def label(text: str | Path, name: str) -> str:
    """How a message names a setting or argument and its value."""
    return f"{name}={text}" if name else str(text)


def exported(texts: Iterable[str]) -> list[str]:
    """Lines of a shell script that set what these paths depend on as it is here, so that they lead to the same places there."""
    names = {name for text in texts for name in [*named_variables(text), *["HOME"] * text.startswith("~")]}
    return [f"export {name}={shlex.quote(os.environ[name])}" for name in sorted(names) if name in os.environ]
