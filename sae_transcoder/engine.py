"""A pack: one stream of batches, one forward of the language model, many runs; and what happens between two batches."""

import gc
import logging
import os
import signal
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from transformers import PreTrainedModel

from sae_transcoder import checkpoint, config, display, heldout, language_model, preflight
from sae_transcoder.config import Config, ConfigError, LossFn
from sae_transcoder.eval_file import Evaluation
from sae_transcoder.heldout import Measured, Subject
from sae_transcoder.member import Diverged, Member
from sae_transcoder.packs import check_shared
from sae_transcoder.preflight import Plan
from sae_transcoder.run_log import concerning
from sae_transcoder.status import State
from sae_transcoder.stop_signal import Stopped, StopSignal
from sae_transcoder.upstream import SparseCoder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """A finished run: its directory, its coders {name: coder} as exported, and their held-out metrics."""

    directory: Path
    coders: dict[str, SparseCoder]
    evaluation: Evaluation


def configure(cfg: Config, device: torch.device) -> None:
    """Process-wide settings of torch."""
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    torch.set_float32_matmul_precision("high")  # as sparsify's Trainer.fit
    if device.type == "cuda":
        torch.cuda.set_device(device)  # Triton's kernels run on the current one
    if cfg.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def train(cfgs: Sequence[Config]) -> list[Result]:
    """Trains runs that share model, data and batch size side by side, and returns their results in order.

    Raises ConfigError before anything is written where settings are wrong, Stopped after a signal, and, once the others are done,
    what the first run that failed failed of.
    """
    outcomes = train_pack(cfgs)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, Result)]


Outcome = Result | Exception


def train_pack(cfgs: Sequence[Config]) -> list[Outcome]:
    """The same, but a run that fails, or that cannot go on from its state, has its exception for an outcome, and the others go on."""
    console = Console(highlight=False)
    check_shared(cfgs)
    known: preflight.Known = {}
    plans = [preflight.plan(cfg, known) for cfg in cfgs]
    first = plans[0]
    configure(first.cfg, first.device)
    with StopSignal() as stop:
        outcomes = train_plans(dict(enumerate(plans)), None, stop, console)
    return [outcomes[i] for i in range(len(plans))]


def train_plans(plans: Mapping[int, Plan], model: PreTrainedModel | None, stop: StopSignal, console: Console) -> dict[int, Outcome]:
    """Trains a pack; where memory does not suffice, its halves one after the other, from where the runs have come."""
    members, outcomes = begin(plans, console)
    rest = {i: plan for i, plan in plans.items() if i not in members and i not in outcomes}
    try:
        if model is None and members:
            lead = next(iter(plans.values()))
            model = language_model.load(lead.cfg, lead.device)
        failed = run_pack(model, list(members.values()), stop, console) if model and members else {}
    except BaseException as error:  # nothing of one run alone: a stop, or a model that cannot be loaded
        if not isinstance(error, Stopped | ConfigError):
            log.exception("%s", error)
        for member in members.values():
            member.close(State.failed, why(error))
        raise
    for i, member in members.items():
        if member in failed:
            outcomes[i] = failed[member]
        elif member.run.done:
            outcomes[i] = Result(member.directory, member.run.exported(), member.evaluation)
        else:
            rest[i] = plans[i]
    if rest:
        log.warning("out of memory with %d runs side by side: they go on in two packs", len(rest))
        members.clear()
        free_memory()
        order = sorted(rest)
        for half in (order[: len(order) // 2], order[len(order) // 2 :]):
            outcomes |= train_plans({i: rest[i] for i in half}, model, stop, console)
    return outcomes


def begin(plans: Mapping[int, Plan], console: Console) -> tuple[dict[int, Member], dict[int, Outcome]]:
    """Opens each run and shows what will be trained; those for which memory does not suffice are left out, those that cannot go on
    from their state have an outcome at once."""
    members: dict[int, Member] = {}
    outcomes: dict[int, Outcome] = {}
    for i, plan in plans.items():
        try:
            member = Member(plan, language_model.resolve_dtype(plan.cfg, plan.device))
            member.open()
        except Exception as error:
            if not is_out_of_memory(error) or len(plans) == 1:
                outcomes[i] = error
                if len(plans) > 1:  # else the caller says it
                    console.print(f"{config.run_dir(plan.cfg)}: {why(error)}", markup=False, soft_wrap=True)
            forget(error)
            continue
        members[i] = member
    if members:
        display.header([m.plan for m in members.values()], console)
    for member in members.values():
        with concerning(member.directory):
            log.info("%s", display.facts(member.plan))
        goes_on = f"continues after step {member.run.step:,}" if member.run.batch else None
        for note in (goes_on, member.warning, member.logbook.where):
            if note:
                name = f"{member.directory.name}: " if len(members) > 1 else ""
                console.print(name + note, markup=False, soft_wrap=True)
    return members, outcomes


def run_pack(model: PreTrainedModel, members: Sequence[Member], stop: StopSignal, console: Console) -> dict[Member, Exception]:
    """The loop: batch after batch until every run is done or has failed; returns what failed. Raises Stopped after a signal.

    Where memory does not suffice for all, it saves the runs that are consistent and returns with unfinished runs closed.
    """
    start = time.monotonic()
    longest = max(members, key=lambda m: m.run.length.batches)
    before = longest.run.tokens
    positions = longest.cfg.max_seq_length
    failed: dict[Member, Exception] = {}
    with display.Bar(console, longest.run.length.steps, longest.run.length.samples * positions - before) as bar:
        while active := [m for m in members if not m.closed]:
            faults = batch(model, active, bar)
            bar.update(longest.run.step, longest.run.tokens - before)
            if len(active) > 1 and any(is_out_of_memory(error) for error in faults.values()):
                make_room(active, faults)
                break
            for member, error in faults.items():
                failed[member] = fail(member, error)
                if len(members) > 1:  # else the caller says it
                    console.print(f"{member.directory}: failed: {why(error)}", markup=False, soft_wrap=True)
            for member in active:
                member.heartbeat(bar)
            if stop.number is not None and not all(m.closed for m in members):
                interrupt(members, stop.number)
    for member in members:
        if member.run.done and member not in failed:
            display.closing(member.directory, member.run.step, time.monotonic() - start, member.evaluation, console)
    return failed


def batch(model: PreTrainedModel, active: Sequence[Member], bar: display.Bar) -> dict[Member, Exception]:
    """One batch: read, one forward to the last hookpoint, and every run that has come so far trains on it; returns what failed."""
    index = min(m.run.batch for m in active)  # resumed runs may be ahead of others
    turn = [m for m in active if m.run.batch == index]
    lead = max(turn, key=lambda m: m.run.length.samples)
    size = lead.cfg.batch_size

    def end(member: Member) -> int:
        return min((index + 1) * size, member.run.length.samples)

    turn = [m for m in turn if end(m) == end(lead)]  # a run whose last batch is not full has it to itself
    failed: dict[Member, Exception] = {}
    end_to_end = lead.cfg.loss_fn != LossFn.fvu  # then the run is alone
    try:
        rows = lead.plan.tokens.train[index * size : end(lead)]
        tokens = torch.from_numpy(rows).to(lead.plan.device)
        points = list(dict.fromkeys(point for m in turn for point in m.plan.widths))
        seen = {} if end_to_end else language_model.capture(model, points, tokens)
    except Exception as error:
        return dict.fromkeys(turn, error)
    subjects: dict[Member, Subject] = {}
    stepped = []
    for member in turn:
        member.amid_batch = True
        with attempt(member, failed):
            if member.run.train_end_to_end(model, tokens) if end_to_end else member.run.train_on(tokens, seen):
                stepped.append(member)
                if member.saving or member.evaluating:
                    subjects[member] = member.subject()
    del seen
    with bar.paused():
        measured = evaluated(model, subjects, failed)
    for member in stepped:
        if member not in failed:
            with attempt(member, failed):
                member.after_step(bar, subjects.get(member), measured.get(member))
    for member in turn:
        member.amid_batch = member in failed
    return failed


@contextmanager
def attempt(member: Member, failed: dict[Member, Exception]) -> Iterator[None]:
    """What fails while it is open is the failure of that run."""
    try:
        with concerning(member.directory):
            yield
    except Exception as error:
        failed[member] = error


def evaluated(
    model: PreTrainedModel, subjects: Mapping[Member, Subject], failed: dict[Member, Exception]
) -> dict[Member, Measured]:
    """Held-out metrics of the members that evaluate now, and of those that keep their best; each kind shares its forwards."""
    whole = [m for m in subjects if m.evaluating]
    best = [m for m in subjects if not m.evaluating and m.cfg.save_best]
    found: dict[Member, Measured] = {}

    def measure(due: Sequence[Member], *, whole: bool) -> None:
        tokens = due[0].plan.tokens.heldout
        try:
            found.update(zip(due, heldout.measure(model, [subjects[m] for m in due], tokens, whole=whole), strict=True))
        except Exception as error:
            if len(due) == 1:
                failed[due[0]] = error
            for member in due if len(due) > 1 else ():  # whose fault it is shows when each is measured alone
                measure([member], whole=whole)

    if whole:
        measure(whole, whole=True)
    if best:
        measure(best, whole=False)
    return found


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the CPU had no more memory to give."""
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and "t allocate memory" in str(error))


def make_room(active: Sequence[Member], faults: Mapping[Member, Exception]) -> None:
    """Closes the runs of a pack that is too large; those amid a batch go on from their last save, the others from here."""
    for member in active:
        if not member.amid_batch:
            member.save_state()
        member.close(State.interrupted, "out of memory; goes on in a smaller pack")
    for error in faults.values():
        forget(error)


def fail(member: Member, error: Exception) -> Exception:
    """Closes a run that failed, with its reason in its log and status; returns the error without what it held in memory."""
    with concerning(member.directory):
        known = isinstance(error, ConfigError | checkpoint.DiskError | Diverged)
        log.log(logging.INFO if known else logging.ERROR, "%s", error, exc_info=None if known else error)
    member.close(State.failed, why(error))
    return forget(error)


def why(error: BaseException) -> str:
    """An error in one line for status.json."""
    return str(error) if isinstance(error, Diverged | ConfigError) else f"{type(error).__name__}: {error}"


def forget(error: Exception) -> Exception:
    """The error without the variables of the functions that it passed through, which hold tensors."""
    traceback.clear_frames(error.__traceback__)
    return error


def free_memory() -> None:
    """Gives back what runs that were closed held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def interrupt(members: Sequence[Member], number: int) -> None:
    """Saves every unfinished run's state and raises Stopped."""
    state = State.preempted if number != signal.SIGINT and "SLURM_JOB_ID" in os.environ else State.interrupted
    stopped = Stopped(number)
    for member in members:
        if not member.closed:
            member.save_state()
            member.close(state, str(stopped))
    raise stopped
