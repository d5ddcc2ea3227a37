"""What is checked before a run or a sweep starts, on this machine or on a cluster."""

import sys
from collections.abc import Sequence
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


def end_before_training(packs: Sequence[Sequence[Config]]) -> NoReturn:
    """Ends the program after dry_run, with the jobs' script where they are the cluster's, or after prepare, once the models are downloaded."""
    cfg = packs[0][0]
    if cfg.prepare:
        from sae_transcoder.language_model import loading

        loading.fetch_all(cfg for pack in packs for cfg in pack)
        print("prepared: models and tokens are on this machine; the same command without prepare=true runs with HF_HUB_OFFLINE=1")
        sys.exit(0)
    if cfg.hardware == Hardware.slurm:
        from sae_transcoder.launch.slurm.script import script_text
        from sae_transcoder.launch.slurm.submit import cluster_obstacle

        print(f"script of the job{'s' * (len(packs) > 1)}:\n\n{script_text(packs)}")
        if obstacle := cluster_obstacle():
            print(f"{obstacle}: no cluster was asked whether it would accept this")
    print("dry run: nothing was started")
    sys.exit(0)
