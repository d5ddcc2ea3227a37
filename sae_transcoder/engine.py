"""A pack: one stream of batches, one forward of the language model, many runs; and what happens between two batches."""

import gc
import logging
import math
import os
import resource
import signal
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from transformers import PreTrainedModel

from sae_transcoder import checkpoint, coder_names, config, display, eval_file, heldout, language_model, preflight
from sae_transcoder.config import Config, ConfigError, LossFn
from sae_transcoder.eval_file import Evaluation
from sae_transcoder.heldout import Measured, Subject
from sae_transcoder.member import Diverged, Member, Taken
from sae_transcoder.packs import check_shared
from sae_transcoder.preflight import Plan
from sae_transcoder.run_log import concerning
from sae_transcoder.status import State
from sae_transcoder.stop_signal import Stopped, StopSignal
from sae_transcoder.upstream import SparseCoder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """A finished run: its directory and the held-out metrics of its coders."""

    directory: Path
    evaluation: Evaluation

    @property
    def coders(self) -> dict[str, SparseCoder]:
        """{coder: as exported}, read anew: a pack that is done holds no coders."""
        folders = {c.coder: self.directory / "coders" / coder_names.folder(c.coder) for c in self.evaluation.coders}
        return {name: SparseCoder.load_from_disk(folder) for name, folder in folders.items()}


def configure(cfg: Config, device: torch.device) -> None:
    """Process-wide settings: torch's, and that each run of a large pack may keep its files open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if 0 < limit < 2**20:  # what is more, some systems do not take
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    torch.set_float32_matmul_precision("high")  # as sparsify's Trainer.fit
    if device.type == "cuda":
        torch.cuda.set_device(device)  # Triton's kernels run on the current one
    if cfg.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


Outcome = Result | Exception


def train(cfgs: Sequence[Config]) -> list[Result]:
    """Trains runs that share model, data and batch size side by side, and returns their results in order.

    Raises ConfigError before anything is written where they share too little, Stopped after a signal, and, once the others are done,
    what the first run that failed failed of, or that was refused.
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
    known: preflight.Known = {}
    plans: dict[int, Plan] = {}
    outcomes: dict[int, Outcome] = {}
    for i, cfg in enumerate(cfgs):
        try:
            plans[i] = preflight.plan(cfg, known)
        except ConfigError as error:
            outcomes[i] = error
    if plans:
        first = next(iter(plans.values()))
        configure(first.cfg, first.device)
        with nullcontext(stop) if stop else StopSignal() as noted:
            outcomes |= train_plans(plans, None, noted, Console(highlight=False))
    return [outcomes[i] for i in range(len(cfgs))]


def train_plans(plans: Mapping[int, Plan], model: PreTrainedModel | None, stop: StopSignal, console: Console) -> dict[int, Outcome]:
    """Trains a pack; where memory does not suffice, its halves one after the other, from where the runs have come."""
    members: dict[int, Member] = {}
    outcomes: dict[int, Outcome] = {}
    failed: dict[Member, Exception] = {}
    try:
        begin(plans, members, outcomes, console)
        if model is None and members:
            lead = max(plans.values(), key=lambda plan: plan.cfg.eval_end_to_end)  # which needs the head
            model = language_model.load(lead.cfg, lead.device)
        if model and members:
            failed = run_pack(model, list(members.values()), stop, console)
    except BaseException as error:  # nothing of one run alone: a stop, or a model that cannot be loaded
        if isinstance(error, Exception) and is_out_of_memory(error) and len(members) > 1:
            make_room(list(members.values()), [error])
        else:
            if not isinstance(error, Stopped | ConfigError):
                log.exception("%s", error)
            for member in members.values():
                member.close(State.failed, why(error))
            raise
    for i, member in members.items():
        if member in failed:
            outcomes[i] = failed[member]
        elif member.finished:
            outcomes[i] = Result(member.directory, member.evaluation)
    rest = {i: plan for i, plan in plans.items() if i not in outcomes}
    if rest:
        log.warning("out of memory with %d runs side by side: they go on in two packs", len(plans))
        members.clear()
        free_memory()
        order = sorted(rest)
        middle = math.ceil(len(order) / 2)
        for half in (order[:middle], order[middle:]):
            if half:
                outcomes |= train_plans({i: rest[i] for i in half}, model, stop, console)
    return outcomes


def begin(plans: Mapping[int, Plan], members: dict[int, Member], outcomes: dict[int, Outcome], console: Console) -> None:
    """Adds each run, opened, to `members`, and shows what will be trained. Those for which memory does not suffice are left out, those
    that cannot go on from their state, or that another process has taken, have an outcome at once."""
    for i, plan in plans.items():
        try:
            member = Member(plan, language_model.resolve_dtype(plan.cfg, plan.device))
            member.open()
            members[i] = member
        except Taken as error:
            evaluation = eval_file.read(config.run_dir(plan.cfg)) if error.done else None
            outcomes[i] = Result(config.run_dir(plan.cfg), evaluation) if evaluation else error
        except Exception as error:
            if not is_out_of_memory(error) or len(plans) == 1:
                outcomes[i] = error
                tell(config.run_dir(plan.cfg), error, len(plans), console)
            forget(error)
    if members:
        display.header([m.plan for m in members.values()], console)
    notes: dict[str, list[str]] = {}
    for member in members.values():
        with concerning(member.directory):
            log.info("%s", display.facts(member.plan))
        goes_on = f"continues after step {member.run.step:,}" if member.run.batch else None
        for note in filter(None, (goes_on, member.warning, member.logbook.where)):
            notes.setdefault(note, []).append(member.directory.name)
    for note, names in notes.items():
        concerns = "" if len(names) == len(members) else f"{', '.join(names)}: "
        console.print(concerns + note, markup=False, soft_wrap=True)


def tell(directory: Path, error: Exception, runs: int, console: Console) -> None:
    """Says that one of several runs failed; of a single one the caller says it."""
    if runs > 1:
        console.print(f"{directory}: failed: {why(error)}", markup=False, soft_wrap=True)


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
                make_room(active, list(faults.values()))
                break
            for member, error in faults.items():
                failed[member] = fail(member, error)
                tell(member.directory, error, len(members), console)
            for member in active:
                member.heartbeat(bar)
            if stop.number is not None and not all(m.closed for m in members):
                interrupt(members, stop.number)
    for member in members:
        if member.finished:
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
    stepped = []
    for member in turn:
        member.amid_batch = True
        with attempt(member, failed):
            if member.run.train_end_to_end(model, tokens) if end_to_end else member.run.train_on(tokens, seen):
                stepped.append(member)
    del seen
    after_step(model, stepped, bar, failed)
    for member in turn:
        member.amid_batch = member in failed
    return failed


def after_step(model: PreTrainedModel, stepped: Sequence[Member], bar: display.Bar, failed: dict[Member, Exception]) -> None:
    """What the step just made makes due: evaluation, metrics, exports, saves; one run after the other where memory does not suffice for
    copies of all coders at once."""
    subjects: dict[Member, Subject] = {}
    for member in stepped:
        if member.saving or member.evaluating:
            with attempt(member, failed):
                subjects[member] = member.subject()
    with bar.paused():
        measured = evaluated(model, subjects, failed)
    short = [member for member in stepped if member in failed and is_out_of_memory(failed[member])]
    if short and len(stepped) > 1:
        subjects.clear()
        for member in short:
            forget(failed.pop(member))
        free_memory()
        for member in stepped:
            if member not in failed:
                after_step(model, [member], bar, failed)
        return
    for member in stepped:
        if member not in failed:
            with attempt(member, failed):
                member.after_step(bar, subjects.get(member), measured.get(member))


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


# What torch's allocator on a CPU and cuBLAS say without an exception of their own.
NO_MEMORY = ("t allocate memory", "bad_alloc", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the CPU had no more memory to give."""
    said = isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)
    return said or isinstance(error, torch.OutOfMemoryError | MemoryError)


def make_room(active: Sequence[Member], faults: Sequence[Exception]) -> None:
    """Closes the runs of a pack that is too large; those amid a batch go on from their last save, the others from here."""
    for error in faults:
        forget(error)
    for member in active:
        if not (member.amid_batch or member.closed):
            try:
                member.save_state()
            except Exception as error:  # there may be no memory for this either: it goes on from its last save
                log.warning("%s: its state could not be saved (%s)", member.directory, error)
        member.close(State.interrupted, "out of memory; goes on in a smaller pack")


def fail(member: Member, error: Exception) -> Exception:
    """Closes a run that failed, with its reason in its log and status; returns the error without what it held in memory."""
    with concerning(member.directory):
        known = isinstance(error, ConfigError | checkpoint.DiskError | Diverged)
        log.log(logging.INFO if known else logging.ERROR, "%s", error, exc_info=None if known else error)
    member.close(State.failed, why(error))
    forget(error)
    return error


def why(error: BaseException) -> str:
    """An error in one line for status.json."""
    return str(error) if isinstance(error, Diverged | ConfigError) else f"{type(error).__name__}: {error}"


def forget(error: BaseException | None) -> None:
    """Drops the variables of the functions that an error, and what caused it, passed through: they hold tensors."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


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
            try:
                member.save_state()
            except Exception as error:  # a full disk: the others are saved yet
                fail(member, error)
            member.close(state, str(stopped))
    raise stopped
