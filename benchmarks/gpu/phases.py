"""Stretches of a training run, each measured in its own way, in one process and on one pack of runs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from sae_transcoder.language_model import forward
from sae_transcoder.language_model.forward import Activations

Seen = Mapping[str, Activations]  # {hookpoint: what it saw of a batch}
Capture = Callable[..., Seen]


@dataclass(frozen=True)
class Phase:
    """So many batches; `around` is open from before the forward of the first until before the forward of the one after the last, and `capture`
    stands in for the forward."""

    steps: int
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    capture: Capture = forward.capture


@contextmanager
def in_phases(phases: Sequence[Phase], each: Callable[[int, Seen], None]) -> Iterator[None]:
    """While it is open, the batches of engine.train pass through the phases, one after the other; after each forward `each` is told the
    number of the batch, from 0, and what the hookpoints saw. Batches beyond the phases are as they are without it."""
    turns = iter([phase for phase in phases for _ in range(phase.steps)])
    own = forward.capture
    current: Phase | None = None
    number = 0

    with ExitStack() as around:

        def batch(*arguments: Any) -> Seen:
            nonlocal current, number
            phase = next(turns, None)
            if phase is not current:
                around.close()
                current = phase
                if phase:
                    around.enter_context(phase.around())
            seen = phase.capture(*arguments) if phase else own(*arguments)
            each(number, seen)
            number += 1
            return seen

        with patch.object(forward, "capture", batch):
            yield


class Remembered:
    """A forward that is made once: later batches see what the first one saw."""

    def __init__(self) -> None:
        self.seen: Seen | None = None

    def __call__(self, *arguments: Any) -> Seen:
        if self.seen is None:
            self.seen = forward_of(*arguments)
        return {point: Activations(here.input, here.output) for point, here in self.seen.items()}  # nothing derived of them yet


forward_of = forward.capture  # the project's own, also while it is patched
