"""What is said of a value that a field does not take."""

import re

from sae_transcoder.config.spelling import did_you_mean
from sae_transcoder.config.type_checks import ANNOTATIONS, choices_of, element_type, wanted
from sae_transcoder.config.unknown_names import SITES


def value_fault(key: str, written: str, reason: str) -> str | None:
    """The message for a value that is not of its field's type; None for what is no such error.

    key: the field, or one of its elements as layers[0]; written: the value as the user wrote it, "" where a preset has it; reason: OmegaConf's.
    """
    name = key.partition("[")[0]
    if name not in ANNOTATIONS:
        return None
    element = element_type(ANNOTATIONS[name])
    if "ListConfig" in reason and written:
        if element is int and not re.fullmatch(r"[-+\d, ]+", written):
            return f"{name}={written}: must be {wanted(ANNOTATIONS[name])}"
        return f"{name}={written}: {name} is a list; write '{name}=[{written}]'"
    if not (found := re.search(r"(?:[Vv]alue|to string:) '(.*?)'", reason)):
        return None
    value = found[1] if key != name or not written else written
    return f"{key}={value}: must be {wanted(ANNOTATIONS[name] if key == name or element is None else element)}{hint(name, value)}"


def hint(name: str, value: str) -> str:
    """What the value may have been meant to be, after a semicolon; empty where nothing is near."""
    site, distance = SITES.get(f"hook_{value.removeprefix('hook_')}", (None, 0))
    if name == "site" and site:
        return f"; write site={site}" + (", and each of the layers one lower" if distance else "")
    meant = did_you_mean(value, choices_of(ANNOTATIONS[name]), most=1)
    return f"; {meant}" if meant else ""
