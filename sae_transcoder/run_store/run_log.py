"""train.log in each run's directory: messages about that run, or about all runs of its pack."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

NAME = "train.log"
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_current_run: ContextVar[Path | None] = ContextVar("current_run", default=None)


@contextmanager
def log_to_run(directory: Path) -> Iterator[None]:
    """Messages logged inside this context go to this run's train.log and to no other run's."""
    token = _current_run.set(directory)
    try:
        yield
    finally:
        _current_run.reset(token)


class RunLog(logging.FileHandler):
    """Appends to a run's train.log the messages about it, and those about no run in particular."""

    def __init__(self, directory: Path):
        super().__init__(directory / NAME, delay=True)
        self.setLevel(logging.INFO)
        self.setFormatter(logging.Formatter(FORMAT))
        self.addFilter(lambda record: _current_run.get() in (None, directory))
        logging.getLogger().addHandler(self)

    def close(self) -> None:
        logging.getLogger().removeHandler(self)
        super().close()
