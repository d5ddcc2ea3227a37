"""How commands end: one message and one exit code for each kind of error, of sae-train in a single run and in a sweep."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from sae_transcoder.config import ConfigError
from sae_transcoder.config.hydra_errors import explain
from sae_transcoder.distributed import PeerFailed, rank, refuse
from sae_transcoder.process import full_disk
from sae_transcoder.process.broken_device import DeviceBroken
from sae_transcoder.process.stop_signal import Stopped

GOES_ON = "the same command goes on from"


class RunFailed(Exception):
    """A run of a sweep failed; ends a search that allows no failure."""


@contextmanager
def end_if_stopped_or_disk_full(stopped: str) -> Iterator[None]:
    """Ends the program with the message `stopped` and exit code 130 at Ctrl-C inside it, with the fix and exit code 1 where a disk is full."""
    try:
        yield
    except KeyboardInterrupt:
        if rank() == 0:
            print(stopped, file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if (fault := full_disk.fault(error)) is None:
            raise
        refuse([fault])


@contextmanager
def end_with_message(overrides: Sequence[str]) -> Iterator[None]:
    """Ends the program with a message where an error is raised inside it. A bug keeps its traceback.

    Exit code 1: refused or failed, 128 + n: stopped by signal n after saving. overrides: the command line's, for Hydra's errors.
    """
    try:
        # Before training began: once it has, it saves first.
        with end_if_stopped_or_disk_full("stopped before anything was trained; what was tokenised is kept"):
            yield
    except ConfigError as error:
        refuse(error.faults)
    except (HydraException, OmegaConfBaseException) as error:
        refuse([explain(error, overrides)])
    except Stopped as error:
        if rank() == 0:
            print(f"{error}; {GOES_ON} here", file=sys.stderr)
        sys.exit(128 + error.number)
    except (DeviceBroken, PeerFailed) as error:
        resumable = isinstance(error, DeviceBroken) or error.is_resumable
        refuse([f"{error}; {GOES_ON} the last save" if resumable else str(error)])
    except Exception as error:
        if not is_known(error):
            raise
        refuse([str(error)])


def is_known(error: Exception) -> bool:
    """Whether an error's message says all that a user needs."""
    from sae_transcoder.training.checkpoint import DiskError  # imports torch, which is imported by now
    from sae_transcoder.training.divergence import Diverged

    return isinstance(error, RunFailed | DiskError | Diverged)
