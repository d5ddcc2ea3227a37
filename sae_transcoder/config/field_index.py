"""`sae-train --explain` without a name: every field in one line."""

import textwrap

from sae_transcoder.config.command_help import WIDTH
from sae_transcoder.config.field_meanings import heading, meanings, shown
from sae_transcoder.config.fields import DEFAULTS
from sae_transcoder.config.presets import default_settings


def field_index() -> str:
    """The fields by group: name, default, and as much of the meaning as fits the line."""
    lines = ["All of one field: --explain FIELD. Below, each with its default and the start of its meaning."]
    names = max(map(len, DEFAULTS)) + 4
    values = max(len(shown(value)) for value in DEFAULTS.values()) + 2
    given = {name: f"by {group}" for group, settings in default_settings().items() for name in settings}
    for group, texts in meanings().items():
        lines += ["", heading(group)]
        for name, text in texts.items():
            start = f"{'  ' + name:<{names}}{given.get(name, shown(DEFAULTS[name])):<{values}}"
            lines.append(start + textwrap.shorten(text, WIDTH - len(start), placeholder=" ..."))
    return "\n".join(lines)
