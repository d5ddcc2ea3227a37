"""How a run's failure is reported: in its log and status file, on the terminal, to other ranks."""

import logging
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from sae_transcoder import slurm_client
from sae_transcoder.config import ConfigError
from sae_transcoder.distributed import PeerFailed, Ranks
from sae_transcoder.process.broken_device import DeviceBroken
from sae_transcoder.process.free_memory import clear_traceback_locals
from sae_transcoder.run_store.run_log import log_to_run
from sae_transcoder.run_store.status import State
from sae_transcoder.training.checkpoint import DiskError
from sae_transcoder.training.divergence import Diverged
from sae_transcoder.training.managed_run import ManagedRun

log = logging.getLogger(__name__)


def fail(run: ManagedRun, error: Exception) -> Exception:
    """Closes a run that failed and logs the error; returns the error without the tensors that it kept in memory."""
    with log_to_run(run.directory):
        is_known = isinstance(error, ConfigError | DiskError | Diverged)
        log.log(logging.INFO if is_known else logging.ERROR, "%s", error, exc_info=None if is_known else error)
    run.close(State.failed, why(error))
    clear_traceback_locals(error)
    return error


def why(error: BaseException) -> str:
    """An error in one line for status.json."""
    is_known = isinstance(error, Diverged | ConfigError | PeerFailed | DeviceBroken)
    return str(error) if is_known else f"{type(error).__name__}: {error}"


def portable(error: Exception) -> Exception:
    """An error in a form that other ranks can unpickle."""
    return error if isinstance(error, ConfigError) else PeerFailed(why(error))


def fail_together(runs: Sequence[ManagedRun], error: BaseException, ranks: Ranks) -> None:
    """Closes all runs of a pack that failed as a whole, and tells the other ranks why."""
    first_reports_it = ranks.announce(error, why(error))
    if isinstance(error, PeerFailed):
        log.info("%s\n%s", error, ranks.trace())
    elif not isinstance(error, ConfigError):
        log.log(logging.INFO if isinstance(error, DeviceBroken) else logging.ERROR, "%s", error, exc_info=error)
    state = State.failed
    if isinstance(error, DeviceBroken) or (isinstance(error, PeerFailed) and error.is_resumable):
        state = State.preempted if slurm_client.submitted_job() else State.interrupted  # SLURM requeues a job by itself
    for run in runs:
        run.close(state, why(error), writes_status=ranks.leads or not first_reports_it)
    ranks.acknowledge_failure()


def tell(directory: Path, error: Exception, num_runs: int, console: Console) -> None:
    """Prints that one of several runs failed; for a single run the caller does."""
    if num_runs > 1:
        console.print(f"{directory}: failed: {why(error)}", markup=False, soft_wrap=True)
