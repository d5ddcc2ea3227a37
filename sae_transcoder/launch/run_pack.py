"""Trains one pack in this process. torch is imported where that begins."""

from pathlib import Path

from sae_transcoder.config import Config, run_dir
from sae_transcoder.distributed import PeerFailed
from sae_transcoder.process.stop_signal import StopSignal
from sae_transcoder.run_store import observed_status
from sae_transcoder.run_store.status import State

Pack = list[Config]
Errors = dict[Path, str | None]
"""{directory of a run: why it failed, None where it did not}."""


def run_pack(pack: Pack, stop: StopSignal) -> Errors:
    """Trains one pack and returns each failed run's error.

    Raises Stopped after a signal, DeviceBroken if the GPU fails, PeerFailed if the GPU of another rank does or that rank is gone; then
    another process can continue the runs.
    """
    from sae_transcoder.process.free_memory import free_memory
    from sae_transcoder.training import engine, failure
    from sae_transcoder.training.managed_run import RunClaimed

    try:
        outcomes = engine.train_pack(pack, stop)
    except Exception as error:  # concerns all runs: a model that cannot be loaded, for instance
        if isinstance(error, PeerFailed) and error.is_resumable:
            raise
        why = failure.why(error)
        for cfg in pack:
            observed_status.mark(run_dir(cfg), State.failed, why)
        return {run_dir(cfg): why for cfg in pack}
    finally:
        free_memory()
    errors: Errors = {}
    for cfg, outcome in zip(pack, outcomes, strict=True):
        errors[run_dir(cfg)] = None
        if isinstance(outcome, RunClaimed):
            print(outcome, flush=True)
        elif isinstance(outcome, Exception):
            errors[run_dir(cfg)] = why = failure.why(outcome)
            observed_status.mark(run_dir(cfg), State.failed, why)  # in case the run had not begun
    return errors
