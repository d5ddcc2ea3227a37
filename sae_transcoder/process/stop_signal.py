"""Signals that end training: noted at once, obeyed between two batches."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Stopped(BaseException):
    """A signal ended the runs at a batch boundary, their state saved. Like KeyboardInterrupt no Exception: it ends a sweep as well."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class StopSignal:
    """While it is open, the first Ctrl-C, SIGTERM or SIGUSR2 only sets `number`; a second one acts as usual, unless it is patient. Outside
    the main thread, which alone may say what signals do, it notes none."""

    def __init__(self, *, patient: bool = False):
        self.number: int | None = None
        self.patient = patient

    def __enter__(self) -> "StopSignal":
        ours = threading.current_thread() is threading.main_thread()
        self.usual = {n: signal.signal(n, self.note) for n in SIGNALS} if ours else {}
        return self

    def note(self, number: int, frame: FrameType | None) -> None:
        """Remembers the signal."""
        self.number = number
        if not self.patient:
            self.__exit__(None, None, None)

    def obey(self) -> None:
        """Raises Stopped where a signal came."""
        if self.number is not None:
            raise Stopped(self.number)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for n, handler in self.usual.items():
            signal.signal(n, handler)


@contextmanager
def held_back() -> Iterator[None]:
    """While it is open, these signals wait; a process that is started meanwhile holds them back until it can take them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
