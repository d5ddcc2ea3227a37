"""What is said of a name that is no field: what it is called here, or what it may have been meant to be."""

import re
from collections.abc import Sequence

from sae_transcoder.config.other_words import OTHER_WORDS
from sae_transcoder.config.spelling import did_you_mean

# TransformerLens's names of what `site` names, with the distance to the layer whose output it is.
SITES = {
    "hook_resid_post": ("residual", 0),
    "hook_resid_pre": ("residual", -1),
    "hook_mlp_out": ("mlp", 0),
    "hook_attn_out": ("attention", 0),
}


def name_fault(written: str, name: str, value: str | None, known: Sequence[str], kind: str = "field or group") -> str:
    """The message for a name that is not among those `known` here.

    written: the setting as the user wrote it; value: its value, where there is one; kind: what the known names are.
    """
    return f"{written}: {name_hint(name, value, known) or f'there is no {kind} {name}; {nearest_hint(name, known)}'}"


def name_hint(name: str, value: str | None, known: Sequence[str]) -> str | None:
    """What a name of another program is here, and what to write; None for a name that none of them has."""
    shown = as_whole_number(value or "VALUE")
    if (last := name.rpartition(".")[2]) != name and last in known:  # sparsify's parser takes sae.k
        return f"the config is flat; write {last}={shown}"
    if (word := OTHER_WORDS.get(last)) is None:
        return None
    if match := re.fullmatch(r"blocks\.(\d+)\.(\w+)", shown):
        site, distance = SITES.get(match[2], (None, 0))
        if site and (layer := int(match[1]) + distance) >= 0:
            return f"{word.meaning}; write 'layers=[{layer}]' site={site}"
    return f"{word.meaning}; {word.fix.replace('{}', shown)}"


def as_whole_number(value: str) -> str:
    """1e6 as 1000000, which is what the fields for whole numbers take; any other text as it is."""
    if not re.fullmatch(r"\d+(\.\d*)?[eE]\+?\d{1,2}", value) or not float(value).is_integer():
        return value
    return str(int(float(value)))


def nearest_hint(name: str, known: Sequence[str]) -> str:
    """The known names that are spelt like this one, as a question; where there are none, where all of them stand."""
    return did_you_mean(name, known, "see sae-train --explain for all fields")
