"""The programs that coders can be exported for. To add one: a module like the others here, and a line in TARGETS."""

from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from sae_transcoder.config import ConfigError

if TYPE_CHECKING:
    from sae_transcoder.exports.source import Source

WriteFiles = Callable[[Path], None]
"""Writes all files of an export into an empty folder."""

TARGETS = {
    "sae_lens": "sae_transcoder.exports.sae_lens",
    "hub": "sae_transcoder.exports.hub",
    "circuit_tracer": "sae_transcoder.exports.circuit_tracer",
}
"""{what `to` takes: the module, imported once it is asked for}. Its `writer(source)` raises ConfigError for coders that the target cannot
express, else returns what writes the files."""


def find_writer(target: str) -> Callable[["Source"], WriteFiles]:
    """The function `writer` of a target's module. Raises ConfigError for an unknown target."""
    if target not in TARGETS:
        near = get_close_matches(target, TARGETS, n=1)
        hint = f"did you mean to={near[0]}?" if near else f"choose one of {', '.join(TARGETS)}"
        raise ConfigError(f"to={target}: there is no such target; {hint}")
    return import_module(TARGETS[target]).writer
