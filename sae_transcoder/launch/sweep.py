"""A sweep: all jobs composed and checked before the first starts, packed, trained, and told of in one table."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus, configure_log
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from sae_transcoder.config import (
    FIELDS,
    GROUPS,
    Config,
    ConfigError,
    Hardware,
    SlurmConfig,
    SweepConfig,
    run_dir,
    run_name,
    signature,
    sweep_dir,
)
from sae_transcoder.config.composition import compose_jobs
from sae_transcoder.preflight import plan as preflight
from sae_transcoder.process.atomic_files import replace_text
from sae_transcoder.run_store import eval_file, files, observed_status, status
from sae_transcoder.run_store.status import State, Status

MANIFEST = "sweep.json"
# What concerns the whole command, and cannot differ between its jobs.
COMMON = [f.name for part in (SlurmConfig, SweepConfig) for f in fields(part) if f.name not in ("distribute_modules", "objective")]
COMMON += ["save_dir", "cache_dir"]


class RunFailed(Exception):
    """A run of a sweep failed; a search that allows no failure ends with it."""


@dataclass
class Job:
    """One combination of a sweep's values; `todo`: what standing.to_do says, or refused."""

    number: int
    overrides: list[str]
    cfg: Config
    todo: str = "new"
    error: str | None = None

    @property
    def open(self) -> bool:
        """Whether it is to be trained."""
        return self.todo in ("new", "again")


def launch(loader: ConfigLoader, master: DictConfig, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """The same for Hydra: each job's result holds its objective, where the command waits for it."""
    configure_log(master.hydra.job_logging, master.hydra.verbose)
    jobs = train(loader, master, job_overrides, first)
    lead = jobs[0].cfg
    ended = lead.hardware != Hardware.slurm or lead.wait or all(job.todo == "done" for job in jobs)
    if ended:
        show_table(jobs, Console(highlight=False))
    return [result(job, ended=ended) for job in jobs]


def train(loader: ConfigLoader, master: DictConfig, job_overrides: Sequence[Sequence[str]], first: int) -> list[Job]:
    """Trains the jobs that are not done, here or on the cluster, and returns all of them, with what they failed of.

    loader, master: Hydra's; first: the number of the first job. Raises ConfigError for a sweep with any fault before it begins, Stopped after
    a signal; ends the program after a dry run.
    """
    console = Console(highlight=False)
    jobs = composed(loader, master, job_overrides, first)
    lead = jobs[0].cfg
    on_slurm = lead.hardware == Hardware.slurm
    if on_slurm:
        from sae_transcoder.launch.slurm import submit as slurm_submit
        from sae_transcoder.launch.slurm import wait as slurm_wait

        slurm_submit.check(lead, searches=not is_grid(master))
    plans = check(jobs, repeats=not is_grid(master))
    with open_dict(master):
        master.hydra.sweep.dir = str(sweep_dir(lead))  # where a search puts its result
    todo = list({run_dir(job.cfg): job for job in jobs if job.open}.values())
    show_plan(jobs, plans, todo, console)
    if lead.dry_run:
        sys.exit(0)
    queue(master, jobs)
    if on_slurm:
        packed = [[plan.cfg for plan in pack] for pack in packs_of(todo, plans)] if todo else []
        slurm_wait.run(packed, [run_dir(job.cfg) for job in jobs], sweep_dir(lead), console, wait=lead.wait)
    elif todo:
        from sae_transcoder.launch import workers

        planned = packs_of(todo, plans)
        one = planned[0][0]
        errors = workers.run([[p.cfg for p in pack] for pack in planned], workers.worker_count(one), one.device, console)
        for job in jobs:
            job.error = job.error or errors.get(run_dir(job.cfg))
    return jobs


def packs_of(todo: Sequence[Job], plans: Mapping[int, preflight.Plan]) -> list[list[preflight.Plan]]:
    """The runs that are to be trained in packs."""
    from sae_transcoder.launch import packs, workers

    planned = [plans[job.number] for job in todo]
    return [[planned[i] for i in pack] for pack in packs.packs(planned, workers.worker_count(planned[0]))]


def composed(loader: ConfigLoader, master: DictConfig, job_overrides: Sequence[Sequence[str]], first: int) -> list[Job]:
    """The jobs with their configs, the sweep's name in each. Raises ConfigError with the faults of all."""
    if not job_overrides:
        raise ConfigError("the sweep has no jobs: one of its values names none (a glob that matches nothing?)")
    found = compose_jobs(loader, master, job_overrides)
    faults = {i: list(cfg.faults) for i, cfg in enumerate(found) if isinstance(cfg, ConfigError)}
    if faults:
        raise ConfigError(*grouped(faults, len(found)))
    cfgs = [cfg for cfg in found if isinstance(cfg, Config)]
    for name in COMMON:
        values = list(dict.fromkeys(str(getattr(cfg, name)) for cfg in cfgs))
        if len(values) > 1:
            raise ConfigError(f"{name}={','.join(values)}: cannot differ within a sweep; start a sweep for each")
    name = cfgs[0].sweep_name or default_name(loader, master, cfgs)
    if (folder := sweep_dir(replace(cfgs[0], sweep_name=name))).is_file() or (folder / status.NAME).exists():
        what = "a file" if folder.is_file() else "a run's directory"
        raise ConfigError(f"sweep_name={name}: {folder} is {what}; choose another sweep_name")
    return [
        Job(first + i, list(overrides), replace(cfg, sweep_name=name))
        for i, (overrides, cfg) in enumerate(zip(job_overrides, cfgs, strict=True))
    ]


def default_name(loader: ConfigLoader, master: DictConfig, cfgs: Sequence[Config]) -> str:
    """The experiment or model_type, the swept fields, and a hash of the settings that are not swept and change the result."""
    params = OmegaConf.select(master, "hydra.sweeper.params") or {}
    given = OverridesParser.create(config_loader=loader).parse_overrides(list(master.hydra.overrides.task))
    swept = {o.key_or_group for o in given if o.is_sweep_override()} | {str(name) for name in params}
    chosen = {o.key_or_group: str(o.value()) for o in given if not o.is_sweep_override() and o.key_or_group not in swept}
    # Fields that a swept group sets; an experiment, or a group of the user's own, may set any, and choose other groups.
    groups = swept - set(FIELDS) | swept & set(GROUPS)
    own = {f.name for key in groups for f in fields(GROUPS.get(key, Config))} - chosen.keys()
    kept = [f.name for f in fields(Config) if f.metadata.get("result", True) and f.name not in swept | own]
    values = {name: getattr(cfgs[0], name) for name in kept if len({str(getattr(cfg, name)) for cfg in cfgs}) == 1}
    if any(GROUPS.get(key, Config) is Config for key in groups):
        values |= {key: value for key, value in chosen.items() if key in GROUPS}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
    label = chosen.get("experiment") or ("runs" if swept & {"model_type", "experiment"} else str(cfgs[0].model_type))
    return "-".join([str(label), *([".".join(sorted(swept))] if swept else []), digest])


def check(jobs: Sequence[Job], *, repeats: bool) -> dict[int, preflight.Plan]:
    """What each job that is to be trained will be, by its number; notes in each job what is to be done.

    repeats: whether jobs are proposed by a search, which may ask for a run again, and goes on where some are refused. Raises
    ConfigError with the faults of all jobs.
    """
    faults: dict[int, list[str]] = {}
    plans: dict[int, preflight.Plan] = {}
    known: preflight.Known = {}
    places: dict[Path, list[Job]] = defaultdict(list)
    for job in jobs:
        places[run_dir(job.cfg)].append(job)
    for directory, same in places.items():
        if len(same) > 1 and not (repeats and len({signature(job.cfg) for job in same}) == 1):
            numbers = ", ".join(str(job.number) for job in same)
            what = f"run_name={same[0].cfg.run_name}: " if same[0].cfg.run_name else ""
            fix = "leave run_name out and set sweep_name" if same[0].cfg.run_name else "leave out what is named twice"
            faults[same[0].number] = [f"{what}jobs {numbers} would share {directory}; {fix}"]
    seen = observed_status.observe_all({directory: found for directory in places if (found := readable(directory)) is not None})
    for job in jobs:
        try:
            preflight.check_settings(job.cfg)
            job.todo = observed_status.to_do(seen.get(run_dir(job.cfg)))
            if job.open:
                plans[job.number] = preflight.plan(job.cfg, known, on_slurm=job.cfg.hardware == Hardware.slurm)
        except ConfigError as error:
            faults.setdefault(job.number, []).extend(error.faults)
    if faults and (not repeats or len(faults) == len(jobs)):
        raise ConfigError(*grouped(faults, len(jobs)))
    for job in jobs:  # a search does without proposals that cannot be trained
        if job.number in faults:
            job.todo, job.error = "refused", "; ".join(faults[job.number])
    return plans


def readable(directory: Path) -> Status | None:
    """A run's status; None where there is none, or one that the check of the settings will refuse."""
    try:
        return status.read(directory)
    except ValueError:
        return None


def grouped(faults: Mapping[int, Sequence[str]], jobs: int) -> list[str]:
    """Each fault once, with the jobs that have it where not all do."""
    who: dict[str, list[int]] = {}
    for number, own in faults.items():
        for fault in own:
            who.setdefault(fault, []).append(number)
    return [
        fault if len(numbers) == jobs else f"{fault} [job{'s' if len(numbers) > 1 else ''} {spans(numbers)} of {jobs}]"
        for fault, numbers in who.items()
    ]


def spans(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 as `0-2, 5`."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in found)


def is_grid(master: DictConfig) -> bool:
    """Whether every job was asked for by name, rather than by a search."""
    return str(master.hydra.sweeper._target_).endswith(("GridSweeper", "BasicSweeper"))


def queue(master: DictConfig, jobs: Sequence[Job]) -> None:
    """Writes the sweep's manifest, and for each new run its config, as Hydra would, and that it is queued."""
    folder = sweep_dir(jobs[0].cfg)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{MANIFEST}.lock"):
        path = folder / MANIFEST
        kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"sweep_name": jobs[0].cfg.sweep_name, "runs": {}}
        kept["runs"] |= {run_name(job.cfg): {"overrides": job.overrides, "signature": signature(job.cfg)} for job in jobs}
        replace_text(path, json.dumps(kept, indent=2) + "\n")
    hydra_node = OmegaConf.masked_copy(master, "hydra")
    choices = dict(hydra_node.hydra.runtime.choices)
    for job in jobs:
        if not job.open:
            continue
        directory = run_dir(job.cfg) / ".hydra"
        directory.mkdir(parents=True, exist_ok=True)
        with open_dict(hydra_node):
            own = dict(override.lstrip("+").split("=", 1) for override in job.overrides)
            hydra_node.hydra.overrides.task = job.overrides
            hydra_node.hydra.job.num, hydra_node.hydra.job.id = job.number, str(job.number)
            hydra_node.hydra.job.override_dirname = ",".join(sorted(job.overrides))
            hydra_node.hydra.runtime.output_dir = str(directory.parent.absolute())
            hydra_node.hydra.runtime.choices = choices | {group: own[group] for group in choices.keys() & own.keys()}
        files.write_config(job.cfg)
        for name, content in [("overrides", OmegaConf.create(job.overrides)), ("hydra", hydra_node)]:
            replace_text(directory / f"{name}.yaml", OmegaConf.to_yaml(content))
        with suppress(Timeout), status.lock(run_dir(job.cfg)):  # else another process has just started it
            if status.read(run_dir(job.cfg)) is None:
                status.write(run_dir(job.cfg), Status(State.queued, signature(job.cfg)))


def show_plan(jobs: Sequence[Job], plans: Mapping[int, preflight.Plan], todo: Sequence[Job], console: Console) -> None:
    """One line of how many runs there are and how far they are; in a dry run also the packs."""
    counts = {name: sum(job.todo == name for job in jobs) for name in ("done", "running", "queued", "again", "new", "refused")}
    told = ", ".join(f"{count} {'to go on' if name == 'again' else name}" for name, count in counts.items() if count)
    console.print(
        f"sweep {jobs[0].cfg.sweep_name}: {len(jobs)} runs ({told}) in {sweep_dir(jobs[0].cfg)}", markup=False, soft_wrap=True
    )
    for job in jobs:
        if job.todo == "refused":
            console.print(f"job {job.number}: {job.error}", markup=False, soft_wrap=True)
    if not todo or not jobs[0].cfg.dry_run:
        return
    from sae_transcoder.launch import packs
    from sae_transcoder.training import display

    for number, chosen in enumerate(packs_of(todo, plans), 1):
        tokens = max(plan.length.samples * plan.cfg.max_seq_length for plan in chosen)
        console.print(
            f"pack {number}: {len(chosen)} runs on {chosen[0].device}, {tokens:,} tokens through {chosen[0].cfg.model_name}, "
            f"about {display.size(packs.memory(chosen), 'B')}",
            markup=False, soft_wrap=True,
        )  # fmt: skip
        for plan in chosen:
            console.print(f"  {run_name(plan.cfg)}: {plan.length.steps:,} steps", markup=False, soft_wrap=True)
    console.print("dry run: nothing was started")


def show_table(jobs: Sequence[Job], console: Console) -> None:
    """The runs of the sweep as sae-report shows them, and why some failed."""
    from sae_transcoder.reports.table import print_runs
    from sae_transcoder.run_store import records as run_records

    complaints: list[str] = []
    here = {run_dir(job.cfg).resolve() for job in jobs}
    records = [r for r in run_records.read_all([sweep_dir(jobs[0].cfg)], complaints.append) if r.directory.resolve() in here]
    print_runs(records, console)


def result(job: Job, *, ended: bool) -> JobReturn:
    """What Hydra is told of a job: its objective, or why it failed; of a run that goes on elsewhere, nothing.

    ended: whether the command has waited for it; else nothing is wrong with a run that has no result yet.
    """
    found = JobReturn(overrides=job.overrides, cfg=OmegaConf.create({}), task_name="train", status=JobStatus.COMPLETED)
    if ended and job.error is None and job.cfg.hardware == Hardware.slurm:
        seen = observed_status.read(run_dir(job.cfg))
        if seen is not None and seen.status.state != State.done:
            job.error = f"{seen.status.state}: {seen.status.why}"
    if job.error is not None:
        found.status, found._return_value = JobStatus.FAILED, RunFailed(f"{run_dir(job.cfg)}: {job.error}")
    elif evaluation := eval_file.read(run_dir(job.cfg)):
        value = evaluation.mean().get(job.cfg.objective, math.nan)
        found._return_value = value if math.isfinite(value) else None  # a search takes no NaN
    return found
