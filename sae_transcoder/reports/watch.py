"""The table of runs, redrawn while they go on."""

import time
from collections.abc import Callable, Sequence

from rich.console import Console, RenderableType
from rich.live import Live

from sae_transcoder.run_store.run_records import Record
from sae_transcoder.run_store.status import State


def going_on(record: Record) -> bool:
    """Whether a run trains or waits to train."""
    return record.goes_on or record.status.state in (State.queued, State.running)


def watch(
    look: Callable[[], Sequence[Record]],
    draw: Callable[[Sequence[Record]], RenderableType],
    console: Console,
    every: float,
    *,
    transient: bool = False,
) -> None:
    """Redraws the runs every so many seconds until none goes on; without a terminal, prints them when a state has changed.

    look: reads the runs. transient: clears the table from the terminal at the end.
    """
    last_states: list[State] = []
    with Live(console=console, auto_refresh=False, transient=transient) as live:
        while True:
            records = look()
            states = [record.status.state for record in records]
            if console.is_terminal or not any(map(going_on, records)):
                live.update(draw(records), refresh=True)
            elif states != last_states:
                console.print(draw(records))
            last_states = states
            if not any(map(going_on, records)):
                return
            time.sleep(every)
