"""How far something is that takes a while: a bar on a terminal, a line every few seconds elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_EVERY = 5.0  # seconds between two lines where there is no terminal


class Progress(Protocol):
    """Opens what shows how many units are done. It yields a function that is called with their number; needed: of how many, None where that is
    not known."""

    def __call__(self, label: str, needed: int | None, unit: str = ...) -> AbstractContextManager[Callable[[int], None]]: ...


@contextmanager
def progress(
    label: str, needed: int | None, unit: str = "sequences", console: Console | None = None
) -> Iterator[Callable[[int], None]]:
    """As Progress says, on the console; None: on standard error."""
    console = console or Console(stderr=True)
    if console.is_terminal:
        ends = (BarColumn(), TimeRemainingColumn()) if needed else (TimeElapsedColumn(),)
        columns = (SpinnerColumn(), TextColumn(label), MofNCompleteColumn(), TextColumn(unit), *ends)
        with rich.progress.Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=needed)
            yield lambda count: bar.update(task, completed=count)
        return
    begin = last = time.monotonic()
    first: int | None = None  # a pass that goes on does not begin at 0

    def show(count: int) -> None:
        nonlocal last, first
        now = time.monotonic()
        first = count if first is None else first
        if now - last > PLAIN_EVERY:
            last = now
            of_all = f" of {needed:,}" if needed else ""
            left = f", {(needed - count) * (now - begin) / (count - first):,.0f} s left" if needed and count > first else ""
            console.print(f"{label} {count:,}{of_all} {unit}{left}", markup=False, highlight=False, soft_wrap=True)

    yield show
