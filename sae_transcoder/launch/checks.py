"""What is checked before a run or a sweep starts, on this machine or on a cluster."""

import sys
from typing import NoReturn

from sae_transcoder.config import Config, Hardware
from sae_transcoder.preflight.plan import Plan, make_plan
from sae_transcoder.preflight.plan_cache import PlanCache


def check_cluster(cfg: Config, *, search: bool = False) -> None:
    """Raises ConfigError where hardware=slurm and the cluster would refuse the job. search: a sweeper waits for the results."""
    if cfg.hardware == Hardware.slurm:
        from sae_transcoder.launch.slurm.submit import check_job

        check_job(cfg, search=search)


def plan_run(cfg: Config, cache: PlanCache | None = None) -> Plan:
    """Plans a run for this machine or for the cluster that hardware=slurm names. Raises ConfigError."""
    return make_plan(cfg, cache, on_slurm=cfg.hardware == Hardware.slurm)


def end_dry_run() -> NoReturn:
    """Ends the program after a dry run."""
    print("dry run: nothing was started")
    sys.exit(0)
