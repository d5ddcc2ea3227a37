"""What is said and done of runs that fail: in their logs and status files, on the terminal, to other ranks."""

import logging
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from sae_transcoder import slurm_client
from sae_transcoder.config import ConfigError
from sae_transcoder.distributed import PeerFailed, Ranks
from sae_transcoder.process.broken_device import DeviceBroken
from sae_transcoder.run_store.run_log import log_to_run
from sae_transcoder.run_store.status import State
from sae_transcoder.training.checkpoint import DiskError
from sae_transcoder.training.managed_run import Diverged, ManagedRun
from sae_transcoder.training.out_of_memory import forget

log = logging.getLogger(__name__)


def fail(member: ManagedRun, error: Exception) -> Exception:
    """Closes a run that failed, with its reason in its log and status; returns the error without what it held in memory."""
    with log_to_run(member.directory):
        known = isinstance(error, ConfigError | DiskError | Diverged)
        log.log(logging.INFO if known else logging.ERROR, "%s", error, exc_info=None if known else error)
    member.close(State.failed, why(error))
    forget(error)
    return error


def why(error: BaseException) -> str:
    """An error in one line for status.json."""
    known = isinstance(error, Diverged | ConfigError | PeerFailed | DeviceBroken)
    return str(error) if known else f"{type(error).__name__}: {error}"


def portable(error: Exception) -> Exception:
    """An error as another rank can be given it."""
    return error if isinstance(error, ConfigError) else PeerFailed(why(error))


def fail_together(members: Sequence[ManagedRun], error: BaseException, ours: Ranks) -> None:
    """Closes all runs of a pack that failed as a whole, and of several ranks tells the others why."""
    said = ours.announce(error, why(error))
    if isinstance(error, PeerFailed):
        log.info("%s\n%s", error, ours.trace())
    elif not isinstance(error, ConfigError):
        log.log(logging.INFO if isinstance(error, DeviceBroken) else logging.ERROR, "%s", error, exc_info=error)
    state = State.failed
    if isinstance(error, DeviceBroken) or (isinstance(error, PeerFailed) and error.blameless):
        state = State.preempted if slurm_client.submitted_job() else State.interrupted  # a job goes on by itself
    for member in members:
        member.close(state, why(error), speaks=ours.leads or not said)
    ours.told()


def tell(directory: Path, error: Exception, runs: int, console: Console) -> None:
    """Says that one of several runs failed; of a single one the caller says it."""
    if runs > 1:
        console.print(f"{directory}: failed: {why(error)}", markup=False, soft_wrap=True)
