"""train.log in each run's directory: what concerns that run, or all runs of its pack."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

NAME = "train.log"
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_concerned: ContextVar[Path | None] = ContextVar("concerned", default=None)


@contextmanager
def log_to_run(directory: Path) -> Iterator[None]:
    """What is logged while it is open goes to this run's train.log and to no other run's."""
    token = _concerned.set(directory)
    try:
        yield
    finally:
        _concerned.reset(token)


class RunLog(logging.FileHandler):
    """Appends to a run's train.log what its own code logs, and what is logged for no run in particular."""

    def __init__(self, directory: Path):
        super().__init__(directory / NAME, delay=True)
        self.setLevel(logging.INFO)
        self.setFormatter(logging.Formatter(FORMAT))
        self.addFilter(lambda record: _concerned.get() in (None, directory))
        logging.getLogger().addHandler(self)

    def close(self) -> None:
        logging.getLogger().removeHandler(self)
        super().close()
