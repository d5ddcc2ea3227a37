"""The table of runs, redrawn while they go on."""

import time
from collections.abc import Callable, Sequence

from rich.console import Console, RenderableType
from rich.live import Live

from sae_transcoder.run_store.run_records import Record
from sae_transcoder.run_store.status import State


def going_on(record: Record) -> bool:
    """Whether a run trains, or waits for it."""
    return record.goes_on or record.status.state in (State.queued, State.running)


def watch(
    look: Callable[[], Sequence[Record]],
    draw: Callable[[Sequence[Record]], RenderableType],
    console: Console,
    every: float,
    *,
    transient: bool = False,
) -> None:
    """Draws the runs again and again, every so many seconds, until none goes on. Where there is no terminal, they are printed when a
    state has changed. transient: nothing stays on a terminal at the end."""
    before: list[State] = []
    with Live(console=console, auto_refresh=False, transient=transient) as live:
        while True:
            records = look()
            states = [record.status.state for record in records]
            if console.is_terminal or not any(map(going_on, records)):
                live.update(draw(records), refresh=True)
            elif states != before:
                console.print(draw(records))
            before = states
            if not any(map(going_on, records)):
                return
            time.sleep(every)
