"""A pack: one stream of batches, one forward of the language model, many runs; and what happens between two batches."""

import logging
import math
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout

import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel

from sae_transcoder import distributed
from sae_transcoder.config import Config, ConfigError, LossFn
from sae_transcoder.distributed import Ranks
from sae_transcoder.language_model import forward, layers
from sae_transcoder.language_model.forward import Activations
from sae_transcoder.preflight import plan as preflight
from sae_transcoder.preflight.plan import Plan
from sae_transcoder.preflight.shared import check_shared
from sae_transcoder.process import devices
from sae_transcoder.process.broken_device import diagnosing, end_if_broken
from sae_transcoder.process.memory_errors import is_out_of_memory
from sae_transcoder.process.stop_signal import Stopped, StopSignal
from sae_transcoder.process.to_device import onto
from sae_transcoder.run_store.status import State
from sae_transcoder.training import display
from sae_transcoder.training.failure import fail, fail_together, tell, why
from sae_transcoder.training.managed_run import ManagedRun
from sae_transcoder.training.out_of_memory import free_memory, make_room
from sae_transcoder.training.outcome import Outcome, Result
from sae_transcoder.training.read_ahead import read_ahead
from sae_transcoder.training.start_pack import begin
from sae_transcoder.training.step_end import after_step, isolate_failure
from sae_transcoder.training.team import teams, train_on

log = logging.getLogger(__name__)


def train(cfgs: Sequence[Config]) -> list[Result]:
    """Trains runs that share model, data and batch size side by side, and returns their results in order.

    Raises ConfigError before anything is written where they share too little, Stopped after a signal, DeviceBroken where the GPU fails,
    and, once the others are done, what the first run that failed failed of, or that was refused.
    """
    outcomes = train_pack(cfgs)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, Result)]


def train_pack(cfgs: Sequence[Config], stop: StopSignal | None = None) -> list[Outcome]:
    """The same, but a run that fails, or that cannot go on from its state, has its exception for an outcome, and the others go on.

    stop: what notes signals; None: a new one, open until the pack is done.
    """
    check_shared(cfgs)
    ours = distributed.meet()
    if ours.size > 1 and len({cfg.distribute_modules for cfg in cfgs}) > 1:
        raise ConfigError(
            "distribute_modules=True, False: ranks read the same batches for one, their own for the other; train them apart"
        )
    with silence() if not ours.leads else nullcontext():
        try:
            outcomes, plans = planned(cfgs, ours)
            if plans:
                first = next(iter(plans.values()))
                # Patient: torchrun hands on a signal that may have reached its processes already.
                signals = nullcontext(stop) if stop else StopSignal(patient=ours.size > 1)
                with diagnosing(), devices.configured(first.cfg, first.device), signals as noted:
                    ours.connect(first.device)
                    outcomes |= train_plans(plans, None, noted, Console(highlight=False), ours)
        except Stopped:
            raise
        except BaseException as error:
            ours.announce(error, why(error))
            raise
    return [outcomes[i] for i in range(len(cfgs))]


@contextmanager
def silence() -> Iterator[None]:
    """While it is open, nothing is printed: one rank speaks for all."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


@diagnosing()
def planned(cfgs: Sequence[Config], ours: Ranks) -> tuple[dict[int, Outcome], dict[int, Plan]]:
    """What was refused, on any rank, and the plans of the other runs."""
    known: preflight.Known = {}

    def plan(cfg: Config) -> Plan | ConfigError:
        try:
            return preflight.plan(cfg, known)
        except ConfigError as error:
            return error

    found = ours.first_then_others(lambda: [plan(cfg) for cfg in cfgs])
    refused: dict[int, Outcome] = {}
    for own in ours.gather({i: f for i, f in enumerate(found) if isinstance(f, ConfigError)}):
        refused = own | refused
    return refused, {i: f for i, f in enumerate(found) if isinstance(f, Plan) and i not in refused}


def train_plans(
    plans: Mapping[int, Plan], model: PreTrainedModel | None, stop: StopSignal, console: Console, ours: Ranks
) -> dict[int, Outcome]:
    """Trains a pack; where memory does not suffice, its halves one after the other, from where the runs have come. Of several ranks all
    fail with the first that does: raises what that one raises, on the others PeerFailed."""
    members: dict[int, ManagedRun] = {}
    outcomes: dict[int, Outcome] = {}
    failed: dict[ManagedRun, Exception] = {}
    try:
        with diagnosing():
            begin(plans, members, outcomes, console, ours)
            if model is None and members:
                model = loaded(list(plans.values()))
            if model and members:
                failed = run_pack(model, list(members.values()), stop, console, ours)
    except Stopped:
        raise
    except BaseException as error:  # nothing of one run alone, such as a model that cannot be loaded
        if ours.size == 1 and isinstance(error, Exception) and is_out_of_memory(error) and len(members) > 1:
            make_room(list(members.values()), [error])
        else:
            fail_together(list(members.values()), error, ours)
            raise
    for i, member in members.items():
        if member in failed:
            outcomes[i] = failed[member]
        elif member.finished and (evaluation := ours.from_first(member.evaluation)):
            outcomes[i] = Result(member.directory, evaluation)
    rest = {i: plan for i, plan in plans.items() if i not in outcomes}
    if rest:
        log.warning("out of memory with %d runs side by side: they go on in two packs", len(plans))
        members.clear()
        free_memory()
        order = sorted(rest)
        middle = math.ceil(len(order) / 2)
        for half in (order[:middle], order[middle:]):
            if half:
                outcomes |= train_plans({i: rest[i] for i in half}, model, stop, console, ours)
    return outcomes


def loaded(plans: Sequence[Plan]) -> PreTrainedModel:
    """The language model as the runs of a pack need it."""
    lead = max(plans, key=lambda plan: plan.cfg.eval_end_to_end)  # which needs the head
    needs = [plan.model_layers for plan in plans]
    count = None if None in needs else max(filter(None, needs))
    return layers.load_for_hookpoints(lead.cfg, lead.device, count, [point for plan in plans for point in plan.widths])


def run_pack(
    model: PreTrainedModel, members: Sequence[ManagedRun], stop: StopSignal, console: Console, ours: Ranks
) -> dict[ManagedRun, Exception]:
    """The loop: batch after batch until every run is done or has failed; returns what failed. Raises Stopped after a signal, DeviceBroken
    where the GPU fails.

    Where memory does not suffice for all, it saves the runs that are consistent and returns with unfinished runs closed.
    """
    start = time.monotonic()
    longest = max(members, key=lambda m: m.run.length.batches)
    before = longest.run.tokens
    positions = longest.cfg.max_seq_length
    failed: dict[ManagedRun, Exception] = {}
    with display.Bar(console, longest.run.length.steps, longest.run.length.samples * positions - before) as bar:
        while active := [m for m in members if not m.closed]:
            faults = batch(model, active, bar)
            for error in faults.values():
                end_if_broken(error)
            bar.update(longest.run.step, longest.run.tokens - before)
            if len(active) > 1 and any(is_out_of_memory(error) for error in faults.values()):
                make_room(active, list(faults.values()))
                break
            for member, error in faults.items():
                failed[member] = fail(member, error)
                tell(member.directory, error, len(members), console)
            for member in active:
                member.heartbeat(bar)
            number = ours.largest(stop.number or 0)  # a signal reaches ranks at different times
            if number and not all(m.closed for m in members):
                interrupt(members, number, ours)
    for member in members:
        if member.finished and member.evaluation:
            display.closing(member.directory, member.run.step, time.monotonic() - start, member.evaluation, console)
    return failed


def batch(model: PreTrainedModel, active: Sequence[ManagedRun], bar: display.Bar) -> dict[ManagedRun, Exception]:
    """One batch: read, one forward to the last hookpoint, and every run that has come so far trains on it; returns what failed."""
    index = min(m.run.batch for m in active)  # resumed runs may be ahead of others
    turn = [m for m in active if m.run.batch == index]
    lead = max(turn, key=lambda m: m.run.length.samples)
    start, end = lead.run.length.rows(index)
    turn = [m for m in turn if m.run.length.rows(index)[1] == end]  # a run whose last batch is not full has it to itself
    failed: dict[ManagedRun, Exception] = {}
    end_to_end = lead.cfg.loss_fn != LossFn.fvu  # then the run is alone
    try:
        sharing = lead.run.ranks
        rows = lead.plan.tokens.train[distributed.part(start, end, sharing.rank, sharing.size)]
        read = torch.from_numpy(rows)
        tokens = onto(lead.plan.device, read)
        seen = {} if end_to_end else activations(model, turn, tokens)
        read_ahead([member.run for member in turn], read, seen)
    except Exception as error:
        if lead.ranks.size > 1:
            raise
        return dict.fromkeys(turn, error)
    stepped = []
    by_run = {member.run: member for member in turn}
    for runs in teams(list(by_run)):
        team = [by_run[run] for run in runs]
        for member in team:
            member.amid_batch = True
        with isolate_failure(team, failed):
            if end_to_end:
                stepped += [lead] if lead.run.train_end_to_end(model, read, tokens) else []
            else:
                stepped += [by_run[run] for run in train_on(runs, read, seen)]
    del seen
    after_step(model, stepped, bar, failed)
    for member in turn:
        member.amid_batch = member in failed
    return failed


def activations(model: PreTrainedModel, turn: Sequence[ManagedRun], tokens: Tensor) -> dict[str, Activations]:
    """What the runs' hookpoints see of `tokens` [sequence, position]; a rank may have no sequence of a short batch."""
    points = list(dict.fromkeys(point for m in turn for point in m.run.points))
    if len(tokens):
        return forward.capture(model, points, tokens, turn[0].cfg.forward_batch_size)
    widths = {point: width for m in turn for point, width in m.plan.widths.items()}
    nothing = {p: torch.empty(0, tokens.shape[1], widths[p], device=tokens.device) for p in points}
    return {p: Activations(none, none) for p, none in nothing.items()}


def interrupt(members: Sequence[ManagedRun], number: int, ours: Ranks) -> None:
    """Saves every unfinished run's state and raises Stopped."""
    state = State.preempted if number != signal.SIGINT and "SLURM_JOB_ID" in os.environ else State.interrupted
    stopped = Stopped(number)
    for member in members:
        if not member.closed:
            try:
                member.save_state()
            except Exception as error:  # a full disk: the others are saved yet
                end_if_broken(error)
                if ours.size > 1:
                    raise
                fail(member, error)
            member.close(state, str(stopped))
    ours.gather(None)  # none leaves before the first rank has written the state
    raise stopped
