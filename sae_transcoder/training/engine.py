"""Trains a pack: runs that share one stream of batches and one forward of the language model."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout

from rich.console import Console

from sae_transcoder import distributed
from sae_transcoder.config import Config, ConfigError
from sae_transcoder.distributed import Ranks
from sae_transcoder.preflight.plan import Plan, make_plan
from sae_transcoder.preflight.plan_cache import PlanCache
from sae_transcoder.preflight.side_by_side import check_shared
from sae_transcoder.process import device_settings
from sae_transcoder.process.broken_device import diagnosing
from sae_transcoder.process.stop_signal import Stopped, StopSignal
from sae_transcoder.training.failure import why
from sae_transcoder.training.outcome import Outcome, TrainedRun
from sae_transcoder.training.smaller_packs import train_plans

log = logging.getLogger(__name__)


def train(cfgs: Sequence[Config], cache: PlanCache | None = None) -> list[TrainedRun]:
    """Trains runs that share model, data and batch size side by side, and returns their results in order.

    cache: what their plans had in common, where they have just been planned.
    Raises ConfigError before anything is written where they share too little, Stopped after a signal, DeviceBroken where the GPU fails.
    Re-raises the first run's error or refusal once the others finish.
    """
    outcomes = train_pack(cfgs, cache=cache)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, TrainedRun)]


def train_pack(cfgs: Sequence[Config], stop: StopSignal | None = None, cache: PlanCache | None = None) -> list[Outcome]:
    """Trains runs as `train` does, but returns the error of a run that fails or is refused in the place of its result.

    stop: signal handler; None installs one for this pack. cache: see `train`.
    """
    check_shared(cfgs)
    ranks = distributed.meet()
    if ranks.size > 1 and len({cfg.distribute_modules for cfg in cfgs}) > 1:
        raise ConfigError(
            "distribute_modules=True, False: ranks read the same batches for one, their own for the other; train them apart"
        )
    with silence() if not ranks.leads else nullcontext():
        try:
            outcomes, plans = planned(cfgs, ranks, PlanCache() if cache is None else cache)
            if plans:
                first = next(iter(plans.values()))
                # Patient: torchrun hands on a signal that may have reached its processes already.
                signals = nullcontext(stop) if stop else StopSignal(patient=ranks.size > 1)
                with diagnosing(), device_settings.configured(first.cfg, first.device), signals as stop_signal:
                    ranks.connect(first.device)
                    outcomes |= train_plans(plans, stop_signal, Console(highlight=False), ranks)
        except Stopped:
            raise
        except BaseException as error:
            ranks.announce(error, why(error))
            raise
    return [outcomes[i] for i in range(len(cfgs))]


@contextmanager
def silence() -> Iterator[None]:
    """Discards what is printed: only rank 0 prints."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


@diagnosing()
def planned(cfgs: Sequence[Config], ranks: Ranks, cache: PlanCache) -> tuple[dict[int, Outcome], dict[int, Plan]]:
    """The errors of runs that any rank refuses, and the plans of the others, by their place in the pack."""

    def plan(cfg: Config) -> Plan | ConfigError:
        try:
            return make_plan(cfg, cache)
        except ConfigError as error:
            return error

    plans = dict(enumerate(ranks.first_then_others(lambda: [plan(cfg) for cfg in cfgs])))
    refused: dict[int, Outcome] = {}
    for of_rank in ranks.all_gather({i: error for i, error in plans.items() if isinstance(error, ConfigError)}):
        refused = of_rank | refused
    return refused, {i: plan for i, plan in plans.items() if isinstance(plan, Plan) and i not in refused}
