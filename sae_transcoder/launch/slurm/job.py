"""What runs inside a SLURM job: the pack of runs that was shipped to it, with the configs as they were composed."""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import submitit
from rich.console import Console

from sae_transcoder import slurm_client
from sae_transcoder.config import Config, Resume, run_dir
from sae_transcoder.distributed import PeerFailed
from sae_transcoder.launch import workers
from sae_transcoder.process import code_version
from sae_transcoder.process.broken_device import EXIT_CODE, DeviceBroken
from sae_transcoder.process.stop_signal import Stopped, StopSignal
from sae_transcoder.run_store import job_record, observed_status
from sae_transcoder.run_store.status import State

# What slurmstepd writes for scancel; it adds the reason where a job is taken away to be requeued. (squeue says COMPLETING of both.)
CANCELLED = re.compile(r"\*\*\* JOB \S+ ON \S+ CANCELLED AT \S+ \*\*\*")


@dataclass
class Pack:
    """Runs that train side by side in one job; submitit pickles it and calls it in every task. `digest`: of the code that it was
    submitted with."""

    cfgs: list[Config]
    digest: str

    def __call__(self) -> None:
        """Trains the runs; ends the process with exit code 1 where one failed, 128 + n after signal n, the states saved, and where a
        rank's GPU failed, or a rank is gone, as if it had died, so that the job goes on in the queue."""
        folder, number = Path(os.environ["SUBMITIT_FOLDER"]), slurm_client.here() or ""
        # A restart goes on with runs that resume=never has begun: it is the same attempt.
        cfgs = [replace(cfg, resume=Resume.auto) if cfg.resume == Resume.never else cfg for cfg in self.cfgs]
        if code_version.current().digest != self.digest:
            why = "the program has changed since the job was submitted; start the same command again (snapshot=true keeps a copy)"
            for cfg in cfgs:
                observed_status.mark(run_dir(cfg), State.failed, why)
            sys.exit(why)
        # Patient: SLURM repeats its signals.
        with StopSignal(patient=True) as stop:
            try:
                errors = self.train(cfgs, job_record.read(folder, number).pieces, stop)
            except Stopped as stopped:
                if CANCELLED.search(job_record.said(folder, number)):
                    for cfg in cfgs:
                        observed_status.mark(run_dir(cfg), State.cancelled, f"SLURM job {number} was cancelled")
                sys.exit(128 + stopped.number)
            except (DeviceBroken, PeerFailed) as lost:
                print(lost, flush=True)
                sys.exit(EXIT_CODE)
        if any(errors.values()):
            sys.exit(1)

    @staticmethod
    def train(cfgs: Sequence[Config], pieces: int, stop: StopSignal) -> workers.Errors:
        """Trains the runs on this node's GPU in a process of its own, or, where the job has several tasks, as one of the ranks."""
        if submitit.JobEnvironment().num_tasks > 1:
            # Which GPU is whose is decided by the local rank.
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
            workers.log_warnings()
            return workers.train(list(cfgs), stop)
        size = -(-len(cfgs) // pieces)
        return workers.spread(
            [list(pack) for pack in slurm_client.portions(cfgs, size)], 1, [], stop, Console(highlight=False), logs=None
        )

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """What goes on after a signal that comes before or after the training: the same."""
        return submitit.helpers.DelayedSubmission(self)
