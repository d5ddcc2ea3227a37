"""Tab completion where Hydra offers a field's present value alone: every value of a field that has few, options, and the names after --explain."""

from enum import StrEnum
from typing import get_args

from sae_transcoder.config.explain_field import OPTION
from sae_transcoder.config.explain_group import further_names
from sae_transcoder.config.fields import GROUPS
from sae_transcoder.config.shell_words import NAMES, long_options
from sae_transcoder.config.type_checks import ANNOTATIONS
from sae_transcoder.metric_names import NAMES as METRICS


def values_of(name: str) -> list[str]:
    """All values of a field that has few; empty for any other, and for a group, whose choices Hydra knows."""
    if name in GROUPS or name not in ANNOTATIONS:
        return []
    if name == "objective":
        return list(METRICS)
    annotation = ANNOTATIONS[name]
    values: list[str] = []
    for option in get_args(annotation) or [annotation]:
        if option is bool:
            values += ["true", "false"]
        elif isinstance(option, type) and issubclass(option, StrEnum):
            values += list(option)
    return values + ["null"] * (bool(values) and type(None) in get_args(annotation))


def completions(line: str) -> list[str] | None:
    """The words that the last one of a command line may become; None where Hydra is to be asked."""
    words = line.split()
    last = words[-1] if words and not line.endswith(" ") else ""
    if OPTION in words:
        return [name for name in (*NAMES, *further_names()) if name.startswith(last)]
    if last.startswith("-"):
        return sorted(option for option in (*long_options(), OPTION) if option.startswith(last))
    name, sign, values = last.partition("=")
    if not sign or not (choices := values_of(name)):
        return None
    before, comma, begun = values.rpartition(",")
    return [f"{name}={before}{comma}{choice}" for choice in choices if choice.startswith(begun)]
