"""The programs that coders can be exported for. To add one: a module like the others here, and a line in TARGETS."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from sae_transcoder.config import ConfigError
from sae_transcoder.config.spelling import did_you_mean

if TYPE_CHECKING:
    from sae_transcoder.exports.source import Source

WriteFiles = Callable[[Path], None]
"""Writes all files of an export into an empty folder."""


@dataclass(frozen=True)
class Target:
    """A program. `module`: imported once it is asked for; its `writer(source, **settings)` raises ConfigError for coders that the target cannot
    express, else returns what writes the files; `settings`: {name of one of its own: how its value is written}."""

    module: str
    settings: Mapping[str, str] = field(default_factory=dict)


TARGETS = {
    "sae_lens": Target("sae_transcoder.exports.sae_lens"),
    "hub": Target("sae_transcoder.exports.hub"),
    "circuit_tracer": Target("sae_transcoder.exports.circuit_tracer", {"features": "true"}),
    "neuronpedia": Target("sae_transcoder.exports.neuronpedia", {"set": "NAME", "creator": "NAME"}),
}
"""{what `to` takes: the program}."""
READERS = {
    "sae_bench": "SAEBench reads what to=sae_lens writes; use that, and examples/sae_bench_core.py",
    "delphi": "Delphi reads a run's coders/ as they are; nothing is to be exported",
}
"""{a program that needs no target of its own: what it reads}."""


def find_writer(target: str, settings: Mapping[str, str]) -> Callable[["Source"], WriteFiles]:
    """The function `writer` of a target's module, with these settings. Raises ConfigError for an unknown target, and settings of others."""
    if target in READERS:
        raise ConfigError(f"to={target}: {READERS[target]}")
    if target not in TARGETS:
        meant = did_you_mean(target, TARGETS, f"choose one of {', '.join(TARGETS)}", most=1, prefix="to=")
        raise ConfigError(f"to={target}: there is no such target; {meant}")
    faults = []
    for name, value in settings.items():
        if name not in TARGETS[target].settings:
            takers = ", ".join(f"to={other}" for other, one in TARGETS.items() if name in one.settings)
            faults.append(f"{name}={value} with to={target}: read with {takers} only; leave {name} out")
    if faults:
        raise ConfigError(*faults)
    return partial(import_module(TARGETS[target].module).writer, **settings)
