"""The jobs of a sweep: composed from the command, checked, and planned before the first starts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig

from sae_transcoder.config import Config, ConfigError, SlurmConfig, SweepConfig, run_dir, signature, sweep_dir
from sae_transcoder.config.checks import folder_name_faults
from sae_transcoder.config.composer import compose_jobs
from sae_transcoder.config.errors import raise_faults
from sae_transcoder.launch.checks import plan_run
from sae_transcoder.launch.sweep_name import default_sweep_name
from sae_transcoder.preflight.plan import Plan, check_settings
from sae_transcoder.preflight.plan_cache import PlanCache
from sae_transcoder.run_store import observed_status, status
from sae_transcoder.run_store.checked_files import DamagedFile
from sae_transcoder.run_store.observed_status import NextAction
from sae_transcoder.run_store.status import Status

# Fields that concern the whole command and cannot differ between its jobs.
COMMON = [
    f.name for group in (SlurmConfig, SweepConfig) for f in fields(group) if f.name not in ("distribute_modules", "objective")
]
COMMON += ["save_dir", "cache_dir"]


@dataclass
class SweepJob:
    """One combination of a sweep's values. `number`: from 0, as Hydra counts; people read it from 1. `action`: what the command does about its
    run; `error`: why it failed or was refused."""

    number: int
    overrides: list[str]
    cfg: Config
    action: NextAction = NextAction.start
    error: str | None = None


def is_grid(master: DictConfig) -> bool:
    """Whether the command names every job, rather than a search that proposes them."""
    return str(master.hydra.sweeper._target_).endswith(("GridSweeper", "BasicSweeper"))


def compose_sweep(loader: ConfigLoader, master: DictConfig, job_overrides: Sequence[Sequence[str]], first: int) -> list[SweepJob]:
    """Composes each job's config, with the name of the sweep in it. Raises ConfigError with the faults of all jobs.

    loader, master: Hydra's; first: the number of the first job.
    """
    if not job_overrides:
        raise ConfigError("the sweep has no jobs: one of its values names none (a glob that matches nothing?)")
    results = compose_jobs(loader, master, job_overrides)
    if faults := {i: list(cfg.faults) for i, cfg in enumerate(results) if isinstance(cfg, ConfigError)}:
        raise ConfigError(*with_job_numbers(faults, len(results)))
    cfgs = [cfg for cfg in results if isinstance(cfg, Config)]
    for name in COMMON:
        values = list(dict.fromkeys(str(getattr(cfg, name)) for cfg in cfgs))
        if len(values) > 1:
            raise ConfigError(f"{name}={','.join(values)}: cannot differ within a sweep; start a sweep for each")
    name = cfgs[0].sweep_name or default_sweep_name(loader, master, cfgs)
    raise_faults(folder_name_faults(cfgs[0]))  # before the file system is asked for it
    if (folder := sweep_dir(replace(cfgs[0], sweep_name=name))).is_file() or (folder / status.NAME).exists():
        kind = "a file" if folder.is_file() else "a run's directory"
        raise ConfigError(f"sweep_name={name}: {folder} is {kind}; choose another sweep_name")
    return [
        SweepJob(first + i, list(overrides), replace(cfg, sweep_name=name))
        for i, (overrides, cfg) in enumerate(zip(job_overrides, cfgs, strict=True))
    ]


def plan_jobs(jobs: Sequence[SweepJob], *, search: bool) -> dict[int, Plan]:
    """Checks all jobs, sets what is done about each, and returns {number of a job to be trained: its plan}.

    search: the jobs are proposals of a search, which may repeat one and continues where some, but not all, are refused. Raises ConfigError
    with the faults of all jobs.
    """
    faults = shared_directory_faults(jobs, search=search)
    plans: dict[int, Plan] = {}
    cache = PlanCache()
    directories = dict.fromkeys(run_dir(job.cfg) for job in jobs)
    reported = {directory: run for directory in directories if (run := read_status(directory)) is not None}
    observed = observed_status.observe_all(reported)
    for job in jobs:
        try:
            check_settings(job.cfg)
            job.action = observed_status.next_action(observed.get(run_dir(job.cfg)))
            if job.action.trains:
                plans[job.number] = plan_run(job.cfg, cache)
        except ConfigError as error:
            faults.setdefault(job.number, []).extend(error.faults)
    if faults and (not search or len(faults) == len(jobs)):
        raise ConfigError(*with_job_numbers(faults, len(jobs)))
    for job in jobs:
        if job.number in faults:
            job.action, job.error = NextAction.refused, "; ".join(faults[job.number])
    return plans


def shared_directory_faults(jobs: Sequence[SweepJob], *, search: bool) -> dict[int, list[str]]:
    """{number of a job: fault} where several jobs would have one directory; a search may propose the same run again."""
    faults: dict[int, list[str]] = {}
    jobs_by_directory: dict[Path, list[SweepJob]] = defaultdict(list)
    for job in jobs:
        jobs_by_directory[run_dir(job.cfg)].append(job)
    for directory, sharing in jobs_by_directory.items():
        if len(sharing) > 1 and not (search and len({signature(job.cfg) for job in sharing}) == 1):
            numbers = ", ".join(str(job.number + 1) for job in sharing)
            name = sharing[0].cfg.run_name
            field = f"run_name={name}: " if name else ""
            fix = "leave run_name out and set sweep_name" if name else "leave out what is named twice"
            faults[sharing[0].number] = [f"{field}jobs {numbers} would share {directory}; {fix}"]
    return faults


def read_status(directory: Path) -> Status | None:
    """A run's status; None where there is none, or one that cannot be read, which check_settings will refuse."""
    try:
        return status.read(directory)
    except DamagedFile:
        return None


def with_job_numbers(faults_by_job: Mapping[int, Sequence[str]], num_jobs: int) -> list[str]:
    """Each fault once, followed by the numbers of the jobs that have it, counted from 1, unless all have it."""
    jobs_by_fault: dict[str, list[int]] = {}
    for number, faults in faults_by_job.items():
        for fault in faults:
            jobs_by_fault.setdefault(fault, []).append(number)
    return [
        fault
        if len(numbers) == num_jobs
        else f"{fault} [job{'s' if len(numbers) > 1 else ''} {ranges([number + 1 for number in numbers])} of {num_jobs}]"
        for fault, numbers in jobs_by_fault.items()
    ]


def ranges(numbers: Sequence[int]) -> str:
    """Numbers with neighbours joined: 1, 2, 3, 6 as `1-3, 6`."""
    groups: list[list[int]] = []
    for number in sorted(numbers):
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return ", ".join(str(group[0]) if len(group) == 1 else f"{group[0]}-{group[-1]}" for group in groups)
