"""Signals that end work on batches: recorded at once, obeyed between two batches."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Stopped(BaseException):
    """A signal ended the runs between two batches, their state saved. No Exception, like KeyboardInterrupt: it ends a sweep too."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class StopSignal:
    """While it is open, the first Ctrl-C, SIGTERM or SIGUSR2 sets `number` and says on stderr what follows; a second one acts as usual. Where it
    is `patient`, any number of them only set `number`. Does nothing outside the main thread."""

    def __init__(self, *, patient: bool = False):
        self.number: int | None = None
        self.patient = patient

    def __enter__(self) -> "StopSignal":
        in_main_thread = threading.current_thread() is threading.main_thread()  # which alone may install handlers
        self.previous_handlers = {n: signal.signal(n, self.record) for n in SIGNALS} if in_main_thread else {}
        return self

    def record(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        self.number = number
        if not self.patient:
            with suppress(OSError):  # not print: the signal may have come while something else prints
                os.write(
                    2,
                    f"{signal.Signals(number).name}: saves after this batch, then stops; a second signal stops at once\n".encode(),
                )
            self.__exit__(None, None, None)

    def obey(self) -> None:
        """Raises Stopped where a signal came."""
        if self.number is not None:
            raise Stopped(self.number)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for n, handler in self.previous_handlers.items():
            signal.signal(n, handler)


@contextmanager
def held_back() -> Iterator[None]:
    """Blocks these signals while it is open; a process started meanwhile blocks them until it can handle them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
