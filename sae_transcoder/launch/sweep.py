"""A sweep: its jobs are composed and checked before the first starts, packed, trained, and shown in one table."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus, configure_log
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from sae_transcoder.config import Hardware, run_dir, sweep_dir
from sae_transcoder.launch import packs, worker_pool
from sae_transcoder.launch.checks import check_cluster, end_before_training
from sae_transcoder.launch.endings import RunFailed
from sae_transcoder.launch.sweep_files import write_sweep_files
from sae_transcoder.launch.sweep_jobs import SweepJob, compose_sweep, is_grid, plan_jobs
from sae_transcoder.launch.sweep_output import print_counts, print_packs, print_table
from sae_transcoder.run_store import eval_file, observed_status
from sae_transcoder.run_store.checked_files import DamagedFile
from sae_transcoder.run_store.observed_status import NextAction
from sae_transcoder.run_store.status import State


class Result(JobReturn):
    """What Hydra gets for a job. A failed one raises its error when its value is asked for, and Hydra prints nothing of its own before that."""

    @property  # type: ignore[misc] # the launcher sets _return_value
    def return_value(self) -> Any:
        """The job's objective. Raises RunFailed."""
        if self.status == JobStatus.FAILED:
            raise self._return_value
        return self._return_value


def launch(loader: ConfigLoader, master: DictConfig, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """Trains the jobs for Hydra, and returns a result for each: its objective, if the command waits for the job."""
    configure_log(master.hydra.job_logging, master.hydra.verbose)
    jobs = train_jobs(loader, master, job_overrides, first)
    lead = jobs[0].cfg
    ended = lead.hardware != Hardware.slurm or lead.wait or all(job.action == NextAction.done for job in jobs)
    if ended:
        print_table(jobs, Console(highlight=False))
    return [result(job, ended=ended) for job in jobs]


def train_jobs(loader: ConfigLoader, master: DictConfig, job_overrides: Sequence[Sequence[str]], first: int) -> list[SweepJob]:
    """Trains the jobs that are not done, here or on the cluster. Returns all jobs; failed ones carry their error.

    loader, master: Hydra's; first: the number of the first job. Raises ConfigError before anything starts if the sweep has any fault, Stopped
    after a signal. Ends the program after dry_run and prepare.
    """
    console = Console(highlight=False)
    jobs = compose_sweep(loader, master, job_overrides, first)
    lead, search = jobs[0].cfg, not is_grid(master)
    check_cluster(lead, search=search)
    plans = plan_jobs(jobs, search=search)
    with open_dict(master):
        master.hydra.sweep.dir = str(sweep_dir(lead))  # where a search puts its result
    to_train = [plans[job.number] for job in {run_dir(job.cfg): job for job in jobs if job.action.trains}.values()]
    num_workers = worker_pool.worker_count(to_train[0]) if to_train else 0
    planned = [[to_train[i] for i in pack] for pack in packs.group_into_packs(to_train, num_workers)]
    print_counts(jobs, console)
    configs = [[plan.cfg for plan in pack] for pack in planned]
    if lead.dry_run or lead.prepare:
        if not planned:
            sys.exit(0)
        print_packs(planned, num_workers, console)
        end_before_training(configs)
    write_sweep_files(master, jobs)
    if lead.hardware == Hardware.slurm:
        from sae_transcoder.launch.slurm.submit_and_wait import submit_and_wait

        submit_and_wait(configs, [run_dir(job.cfg) for job in jobs], sweep_dir(lead), console, wait=lead.wait)
    elif configs:
        errors = worker_pool.run(configs, num_workers, planned[0][0].device, console)
        for job in jobs:
            job.error = job.error or errors.get(run_dir(job.cfg))
    return jobs


def result(job: SweepJob, *, ended: bool) -> JobReturn:
    """What Hydra gets for a job: its objective, or the reason of its failure; neither for a run still on the cluster.

    ended: whether the command has waited for the job.
    """
    returned = Result(overrides=job.overrides, cfg=OmegaConf.create({}), task_name="train", status=JobStatus.COMPLETED)
    directory, evaluation = run_dir(job.cfg), None
    try:
        if ended and job.error is None and job.cfg.hardware == Hardware.slurm:
            observed = observed_status.read(directory)
            if observed is not None and observed.status.state != State.done:
                job.error = f"{observed.status.state}: {observed.status.why}"
        evaluation = eval_file.read(directory) if job.error is None else None
    except DamagedFile as error:
        job.error = str(error)
    if job.error is not None:
        returned.status, returned._return_value = JobStatus.FAILED, RunFailed(f"{directory}: {job.error}")
    elif evaluation:
        value = evaluation.mean().get(job.cfg.objective, math.nan)
        returned._return_value = value if math.isfinite(value) else None  # a search takes no NaN
    return returned
