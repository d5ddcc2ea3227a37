"""What runs hold of their device's memory, and when they hold most.

Each part is held at some moments and freed at others. Runs side by side hold a part once for all, or one each. What they need is what
they hold at the worst moment.
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
    """Bytes that a run holds at some moments.

    Runs side by side hold parts of the same name and equal `shared` together: only the `at_once` largest of them. With `shared` None
    each run holds its own.
    """

    name: str
    num_bytes: int
    moments: Sequence[Moment]
    shared: Hashable = None
    at_once: int = 1


class Peak(NamedTuple):
    """The moment at which runs hold most, and {part: bytes} then."""

    moment: Moment
    parts: dict[str, int]

    @property
    def total_bytes(self) -> int:
        """Bytes in all."""
        return sum(self.parts.values())


def peak(runs: Sequence[Sequence[Part]]) -> Peak:
    """The worst moment of runs side by side."""
    return max((Peak(moment, bytes_by_part(moment, runs)) for moment in Moment), key=lambda peak: peak.total_bytes)


def bytes_by_part(moment: Moment, runs: Sequence[Sequence[Part]]) -> dict[str, int]:
    """What runs side by side hold at this moment, {part: bytes}."""
    groups: dict[Hashable, list[Part]] = {}
    for number, part in enumerate(part for run in runs for part in run if moment in part.moments):
        groups.setdefault(number if part.shared is None else (part.name, part.shared), []).append(part)
    total: dict[str, int] = {}
    for parts in groups.values():
        at_once = max(part.at_once for part in parts)
        largest = sorted((part.num_bytes for part in parts), reverse=True)[:at_once]
        total[parts[0].name] = total.get(parts[0].name, 0) + sum(largest)
    return total
