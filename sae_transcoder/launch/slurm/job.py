"""What runs inside a SLURM job: a pack of runs, with their configs as composed at submission."""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import submitit
from rich.console import Console

from sae_transcoder import slurm_client
from sae_transcoder.config import Config, run_dir
from sae_transcoder.distributed import PeerFailed
from sae_transcoder.launch.crashes import restarted
from sae_transcoder.launch.run_pack import Errors, run_pack
from sae_transcoder.launch.worker import log_warnings
from sae_transcoder.launch.worker_pool import spread
from sae_transcoder.process import code_version
from sae_transcoder.process.broken_device import EXIT_CODE, DeviceBroken
from sae_transcoder.process.stop_signal import Stopped, StopSignal
from sae_transcoder.run_store import job_record, observed_status
from sae_transcoder.run_store.checked_files import DamagedFile
from sae_transcoder.run_store.status import State

# slurmstepd's message after scancel; where a job is to be requeued, the message also has a reason. (squeue shows COMPLETING for both.)
CANCELLED = re.compile(r"\*\*\* JOB \S+ ON \S+ CANCELLED AT \S+ \*\*\*")


def give_up(cfgs: Sequence[Config], why: str) -> NoReturn:
    """Ends the job, whose runs cannot be trained in it."""
    for cfg in cfgs:
        observed_status.mark(run_dir(cfg), State.failed, why)
    sys.exit(why)


@dataclass
class PackTask:
    """Runs that train side by side in one job. submitit pickles it and calls it in every task of the job. `digest`: of the code at
    submission."""

    cfgs: list[Config]
    digest: str

    def __call__(self) -> None:
        """Trains the runs. Ends the process with exit code 1 if one failed, and with 128 + n after signal n, once the states are saved.

        If a rank is gone or its GPU failed, the exit code is that of a crash, so that the job is requeued.
        """
        folder, number = Path(os.environ["SUBMITIT_FOLDER"]), slurm_client.current_job() or ""
        cfgs = [restarted(cfg) for cfg in self.cfgs]  # the job may have been requeued
        if code_version.current().digest != self.digest:
            give_up(
                cfgs,
                "the program has changed since the job was submitted; start the same command again (snapshot=true keeps a copy)",
            )
        try:
            num_packs = job_record.read(folder, number).pieces
        except DamagedFile as error:
            give_up(cfgs, str(error))
        # Patient: SLURM repeats its signals.
        with StopSignal(patient=True) as stop:
            try:
                errors = self.train(cfgs, num_packs, stop)
            except Stopped as stopped:
                if CANCELLED.search(job_record.last_output(folder, number)):
                    for cfg in cfgs:
                        observed_status.mark(run_dir(cfg), State.cancelled, f"SLURM job {number} was cancelled")
                sys.exit(128 + stopped.number)
            except (DeviceBroken, PeerFailed) as lost:
                print(lost, flush=True)
                sys.exit(EXIT_CODE)
        if any(errors.values()):
            sys.exit(1)

    @staticmethod
    def train(cfgs: Sequence[Config], num_packs: int, stop: StopSignal) -> Errors:
        """Trains the runs on this node's GPU in a child process, or, if the job has several tasks, as one of the ranks."""
        if submitit.JobEnvironment().num_tasks > 1:
            # All GPUs stay visible: each rank chooses its own by its local rank.
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
            log_warnings()
            return run_pack(list(cfgs), stop)
        packs = [list(pack) for pack in slurm_client.chunks(cfgs, -(-len(cfgs) // num_packs))]
        return spread(packs, 1, [], stop, Console(highlight=False), log_dir=None)

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """submitit calls this for a signal before or after training: the same pack is to be submitted again."""
        return submitit.helpers.DelayedSubmission(self)
