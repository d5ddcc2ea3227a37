"""What the command prints about a sweep: a line before it starts, its packs in a dry run, a table at its end."""

import sys
from collections.abc import Sequence

from rich.console import Console

from sae_transcoder.config import Hardware, run_dir, run_name, sweep_dir
from sae_transcoder.launch import packs
from sae_transcoder.launch.sweep_jobs import SweepJob
from sae_transcoder.preflight.plan import Plan
from sae_transcoder.run_store.differing_settings import settings_apart
from sae_transcoder.run_store.observed_status import NextAction


def print_counts(jobs: Sequence[SweepJob], console: Console) -> None:
    """One line with how many runs there are and what is done about them, a line where all other runs in the folder differ from
    them, and a line for each refused job."""
    counts = {action: sum(job.action == action for job in jobs) for action in NextAction}
    actions = ", ".join(f"{count} {action}" for action, count in counts.items() if count)
    lines = [f"sweep {jobs[0].cfg.sweep_name}: {len(jobs)} runs ({actions}) in {sweep_dir(jobs[0].cfg)}"]
    count, apart = settings_apart(sweep_dir(jobs[0].cfg), [run_dir(job.cfg) for job in jobs], [job.cfg for job in jobs])
    if apart:
        lines.append(f"{count} other run{'s' * (count > 1)} there, of other settings ({apart})")
    lines += [f"job {job.number + 1}: {job.error}" for job in jobs if job.action == NextAction.refused]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def print_packs(planned: Sequence[Sequence[Plan]], workers: int, console: Console) -> None:
    """The packs that would be trained, with their runs, their time and warnings. On this machine, where `workers` processes share them, also
    the time of all."""
    from sae_transcoder.preflight import header, time_estimate

    for number, plans in enumerate(planned, 1):
        tokens = max(plan.length.samples * plan.cfg.max_seq_length for plan in plans)
        console.print(
            f"pack {number}: {len(plans)} runs on {plans[0].device}, {tokens:,} tokens through {plans[0].cfg.model_name}, "
            f"about {header.size(packs.memory(plans), 'B')}; time: {header.time_needed(plans)}",
            markup=False, soft_wrap=True,
        )  # fmt: skip
        for plan in plans:
            console.print(
                f"  {run_name(plan.cfg)}: {plan.length.steps:,} steps, lr {header.rate(plan)}", markup=False, soft_wrap=True
            )
    for warning in dict.fromkeys(warning for plans in planned for plan in plans for warning in plan.warnings):
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)
    estimates = [time_estimate.estimate(plans) for plans in planned]
    totals = [found.total for found in estimates if found and found.total is not None]
    if 1 < len(planned) == len(totals) and planned[0][0].cfg.hardware != Hardware.slurm:
        ends = [0.0] * workers
        for seconds in totals:  # the next process that is free takes the next pack
            ends[ends.index(min(ends))] += seconds
        console.print(f"time of all packs: about {time_estimate.in_words(max(ends))}", markup=False)


def print_table(jobs: Sequence[SweepJob], console: Console) -> None:
    """The runs of the jobs as sae-report shows them, and why some failed."""
    from sae_transcoder.reports.table import print_runs
    from sae_transcoder.run_store import run_records

    directories = {run_dir(job.cfg).resolve() for job in jobs}
    records = run_records.read_all([sweep_dir(jobs[0].cfg)], lambda fault: print(f"warning: {fault}", file=sys.stderr))
    print_runs([record for record in records if record.directory.resolve() in directories], console)
