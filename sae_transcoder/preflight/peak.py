"""What runs hold of their device's memory, and when they hold most.

A part of it is held at some moments and has been given back at others; runs side by side hold it once for all, or each its own. What they
need is what they hold at the worst moment.
"""

from collections.abc import Hashable, Sequence
from enum import StrEnum
from typing import NamedTuple


class Moment(StrEnum):
    """When runs may hold most."""

    forward = "in the language model's forward"
    coder = "in a coder's step"
    update = "in an optimizer's step"
    copy = "while coders are copied"
    reconstruction = "while reconstructions are evaluated"
    comparison = "while latents are compared"
    predictions = "while predictions are evaluated"


ALWAYS = tuple(Moment)
BATCH = (Moment.forward, Moment.coder, Moment.update)
SAVE = (Moment.copy, Moment.reconstruction, Moment.comparison, Moment.predictions)


class Part(NamedTuple):
    """What holds so many bytes, and at which moments. Of runs side by side those with equal `shared` hold it `times` at most, the largest for
    all; None: each holds its own."""

    what: str
    held: int
    during: Sequence[Moment]
    shared: Hashable = None
    times: int = 1


class Peak(NamedTuple):
    """The moment at which runs hold most, and what holds how many bytes then."""

    moment: Moment
    parts: dict[str, int]

    @property
    def held(self) -> int:
        """Bytes in all."""
        return sum(self.parts.values())


def peak(runs: Sequence[Sequence[Part]]) -> Peak:
    """The worst moment of runs side by side."""
    return max((Peak(moment, held(moment, runs)) for moment in Moment), key=lambda found: found.held)


def held(moment: Moment, runs: Sequence[Sequence[Part]]) -> dict[str, int]:
    """What runs side by side hold at this moment, {part: bytes}."""
    alike: dict[Hashable, list[Part]] = {}
    for number, part in enumerate(part for run in runs for part in run if moment in part.during):
        alike.setdefault(number if part.shared is None else (part.what, part.shared), []).append(part)
    found: dict[str, int] = {}
    for parts in alike.values():
        times = max(part.times for part in parts)
        largest = sorted((part.held for part in parts), reverse=True)[:times]
        found[parts[0].what] = found.get(parts[0].what, 0) + sum(largest)
    return found
