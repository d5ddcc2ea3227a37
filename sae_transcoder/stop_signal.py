"""Signals that end training: noted at once, obeyed between two batches."""

import signal
from types import FrameType, TracebackType


class Stopped(BaseException):
    """A signal ended the runs at a batch boundary, their state saved. Like KeyboardInterrupt no Exception: it ends a sweep as well."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class StopSignal:
    """While it is open, the first Ctrl-C, SIGTERM or SIGUSR2 only sets `number`; a second one acts as usual."""

    def __enter__(self) -> "StopSignal":
        self.number: int | None = None
        self.usual = {n: signal.signal(n, self.note) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
        return self

    def note(self, number: int, frame: FrameType | None) -> None:
        """Remembers the signal."""
        self.number = number
        for n, handler in self.usual.items():
            signal.signal(n, handler)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for n, handler in self.usual.items():
            signal.signal(n, handler)
