"""Trains a pack: runs that share one stream of batches and one forward of the language model."""

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout

from rich.console import Console
from transformers import PreTrainedModel

from sae_transcoder import distributed
from sae_transcoder.config import Config, ConfigError
from sae_transcoder.distributed import Ranks
from sae_transcoder.language_model import layers
from sae_transcoder.preflight.plan import Plan, make_plan
from sae_transcoder.preflight.plan_cache import PlanCache
from sae_transcoder.preflight.shared import check_shared
from sae_transcoder.process import devices
from sae_transcoder.process.broken_device import diagnosing
from sae_transcoder.process.memory_errors import is_out_of_memory
from sae_transcoder.process.stop_signal import Stopped, StopSignal
from sae_transcoder.training import out_of_memory
from sae_transcoder.training.failure import fail_together, why
from sae_transcoder.training.managed_run import ManagedRun
from sae_transcoder.training.outcome import Outcome, TrainedRun
from sae_transcoder.training.pack_loop import run_pack
from sae_transcoder.training.start_pack import announce, claim, open_runs, outcomes_of
from sae_transcoder.training.step_end import Errors

log = logging.getLogger(__name__)


def train(cfgs: Sequence[Config]) -> list[TrainedRun]:
    """Trains runs that share model, data and batch size side by side, and returns their results in order.

    Raises ConfigError before anything is written where they share too little, Stopped after a signal, DeviceBroken where the GPU fails.
    Re-raises the first run's error or refusal once the others finish.
    """
    outcomes = train_pack(cfgs)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, TrainedRun)]


def train_pack(cfgs: Sequence[Config], stop: StopSignal | None = None) -> list[Outcome]:
    """Trains runs as `train` does, but returns the error of a run that fails or is refused in the place of its result.

    stop: signal handler; None installs one for this pack.
    """
    check_shared(cfgs)
    ranks = distributed.meet()
    if ranks.size > 1 and len({cfg.distribute_modules for cfg in cfgs}) > 1:
        raise ConfigError(
            "distribute_modules=True, False: ranks read the same batches for one, their own for the other; train them apart"
        )
    with silence() if not ranks.leads else nullcontext():
        try:
            outcomes, plans = planned(cfgs, ranks)
            if plans:
                first = next(iter(plans.values()))
                # Patient: torchrun hands on a signal that may have reached its processes already.
                signals = nullcontext(stop) if stop else StopSignal(patient=ranks.size > 1)
                with diagnosing(), devices.configured(first.cfg, first.device), signals as stop_signal:
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
def planned(cfgs: Sequence[Config], ranks: Ranks) -> tuple[dict[int, Outcome], dict[int, Plan]]:
    """The errors of runs that any rank refuses, and the plans of the others, by their place in the pack."""
    cache = PlanCache()

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


def train_plans(plans: Mapping[int, Plan], stop: StopSignal, console: Console, ranks: Ranks) -> dict[int, Outcome]:
    """Trains a pack; where memory does not suffice, its halves one after the other, each run from where it stopped.

    With several ranks all fail with the first that does: raises that rank's error, on the others PeerFailed.
    """
    outcomes: dict[int, Outcome] = {}
    packs: list[tuple[Mapping[int, Plan], PreTrainedModel | None]] = [(plans, None)]
    while packs:
        pack, model = packs.pop(0)
        pack_outcomes, model = try_pack(pack, model, stop, console, ranks)
        outcomes |= pack_outcomes
        if unfinished := sorted(pack.keys() - pack_outcomes.keys()):
            log.warning("out of memory with %d runs side by side: they go on in two packs", len(pack))
            out_of_memory.free_memory()
            middle = math.ceil(len(unfinished) / 2)
            halves = unfinished[:middle], unfinished[middle:]
            packs[:0] = [({i: pack[i] for i in half}, model) for half in halves if half]
    return outcomes


def try_pack(
    plans: Mapping[int, Plan], model: PreTrainedModel | None, stop: StopSignal, console: Console, ranks: Ranks
) -> tuple[dict[int, Outcome], PreTrainedModel | None]:
    """Trains a pack as long as memory suffices. Returns outcomes, none for a run that is not finished, and the language model, loaded if any
    run began."""
    runs: dict[int, ManagedRun] = {}
    outcomes: dict[int, Outcome] = {}
    errors: Errors = {}
    try:
        with diagnosing():
            runs, refused = claim(plans, ranks)
            refused |= open_runs(runs, ranks)
            outcomes = outcomes_of(refused, plans, console, ranks)
            runs = {i: run for i, run in runs.items() if run.opened}
            announce(list(runs.values()), console)
            if runs:
                model = loaded(list(plans.values())) if model is None else model
                errors = run_pack(model, list(runs.values()), stop, console, ranks)
    except Stopped:
        raise
    except BaseException as error:  # of the whole pack, such as a model that cannot be loaded
        opened = [run for run in runs.values() if run.opened]
        if ranks.size == 1 and isinstance(error, Exception) and is_out_of_memory(error) and len(opened) > 1:
            out_of_memory.make_room(opened, [error])
        else:
            fail_together(opened, error, ranks)
            raise
    for i, run in runs.items():
        if run in errors:
            outcomes[i] = errors[run]
        elif run.finished and (evaluation := ranks.broadcast(run.evaluation)):
            outcomes[i] = TrainedRun(run.cfg, run.directory, evaluation)
    return outcomes, model


def loaded(plans: Sequence[Plan]) -> PreTrainedModel:
    """The language model, with the layers and the head that the runs of a pack need."""
    most_demanding = max(plans, key=lambda plan: plan.cfg.eval_end_to_end)  # which needs the head
    layers_needed = [plan.model_layers for plan in plans]
    num_layers = None if None in layers_needed else max(filter(None, layers_needed))
    hookpoints = [point for plan in plans for point in plan.widths]
    return layers.load_for_hookpoints(most_demanding.cfg, most_demanding.device, num_layers, hookpoints)
