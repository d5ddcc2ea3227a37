"""A pack: one stream of batches, one forward of the language model, many runs; and what happens between two batches."""

import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType, TracebackType

import torch
from rich.console import Console
from transformers import PreTrainedModel

from sae_transcoder import checkpoint, display, heldout, language_model, preflight
from sae_transcoder.config import Config, ConfigError, DatasetConfig, LossFn, ModelConfig
from sae_transcoder.eval_file import Evaluation
from sae_transcoder.heldout import Measured, Subject
from sae_transcoder.member import Member
from sae_transcoder.status import State
from sae_transcoder.upstream import SparseCoder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """A finished run: its directory, its coders {name: coder} as exported, and their held-out metrics."""

    directory: Path
    coders: dict[str, SparseCoder]
    evaluation: Evaluation


class Stopped(BaseException):
    """A signal ended the runs at a batch boundary, their state saved. Like KeyboardInterrupt no Exception: it ends a sweep as well."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class StopSignal:
    """While it is open, the first Ctrl-C, SIGTERM or SIGUSR2 only sets `number`; a second one acts as usual."""

    def __enter__(self) -> "StopSignal":
        self.number: int | None = None
        self.usual = {n: signal.signal(n, self.note) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
        return self

    def note(self, number: int, frame: FrameType | None) -> None:
        """Remembers the signal."""
        self.number = number
        for n, handler in self.usual.items():
            signal.signal(n, handler)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for n, handler in self.usual.items():
            signal.signal(n, handler)


# Fields of the model and the data in which runs of one pack may differ: each leaves out its own tokens.
OWN = {"exclude_tokens", "exclude_first_tokens", "max_norm_multiple"}
# What runs of one pack have in common: they see the same batches and the same activations.
SHARED = [f.name for f in (*fields(ModelConfig), *fields(DatasetConfig)) if f.name not in OWN]
SHARED += ["batch_size", "device", "threads", "deterministic"]


def check_shared(cfgs: Sequence[Config]) -> None:
    """Raises ConfigError for runs that cannot train side by side."""
    faults = []
    for name in SHARED:
        values = dict.fromkeys(getattr(cfg, name) for cfg in cfgs)
        if len(values) > 1:
            faults.append(f"{name}={', '.join(map(str, values))}: runs that train side by side must agree in it; train them apart")
    if len(cfgs) > 1 and any(cfg.loss_fn != LossFn.fvu for cfg in cfgs):
        faults.append("loss_fn=ce or kl: the run's own forward passes through its coders; train it apart")
    if faults:
        raise ConfigError(*faults)


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

    Raises ConfigError before anything is written where a run must be refused, and Stopped after a signal.
    """
    console = Console(highlight=False)
    check_shared(cfgs)
    plans = [preflight.plan(cfg) for cfg in cfgs]
    first = plans[0]
    configure(first.cfg, first.device)
    members = [Member(plan, language_model.resolve_dtype(plan.cfg, plan.device)) for plan in plans]
    opened: list[Member] = []
    try:
        with StopSignal() as stop:
            for member in members:
                member.open()
                opened.append(member)
                introduce(member, console)
            run_pack(members, stop, console)
    except BaseException as error:
        known = isinstance(error, ConfigError | checkpoint.DiskError | Stopped)
        log.log(logging.INFO if known else logging.ERROR, "%s", error, exc_info=not known)
        for member in opened:
            member.close(State.failed, f"{type(error).__name__}: {error}")
        raise
    return [Result(m.directory, m.run.exported(), m.evaluation) for m in members]


def introduce(member: Member, console: Console) -> None:
    """Shows what will be trained, and from where."""
    display.header(member.plan, console)
    log.info("%s", display.facts(member.plan))
    goes_on = f"continues after step {member.run.step:,}" if member.run.batch else None
    for note in (goes_on, member.warning, member.logbook.where):
        if note:
            console.print(note, markup=False, soft_wrap=True)


def run_pack(members: Sequence[Member], stop: StopSignal, console: Console) -> None:
    """The loop: batch after batch until every run is done. Raises Stopped after a signal, the states saved."""
    start = time.monotonic()
    longest = max(members, key=lambda m: m.run.length.batches)
    before = longest.run.tokens
    positions = longest.cfg.max_seq_length
    model = language_model.load(longest.cfg, longest.plan.device)
    with display.Bar(console, longest.run.length.steps, longest.run.length.samples * positions - before) as bar:
        while active := [m for m in members if not m.run.done]:
            batch(model, active, bar)
            bar.update(longest.run.step, longest.run.tokens - before)
            for member in active:
                member.heartbeat(bar)
            if stop.number is not None and not all(m.run.done for m in members):
                interrupt(members, stop.number)
    for member in members:
        display.closing(member.directory, member.run.step, time.monotonic() - start, member.evaluation, console)


def batch(model: PreTrainedModel, active: Sequence[Member], bar: display.Bar) -> None:
    """One batch: read, one forward to the last hookpoint, and every run that has come so far trains on it."""
    index = min(m.run.batch for m in active)  # resumed runs may be ahead of others
    turn = [m for m in active if m.run.batch == index]
    lead = turn[0]
    size = lead.cfg.batch_size
    rows = lead.plan.tokens.train[index * size : min((index + 1) * size, lead.run.length.samples)]
    tokens = torch.from_numpy(rows).to(lead.plan.device)
    points = list(dict.fromkeys(point for m in turn for point in m.plan.widths))
    end_to_end = lead.cfg.loss_fn != LossFn.fvu  # then the run is alone
    seen = {} if end_to_end else language_model.capture(model, points, tokens)
    stepped = [m for m in turn if (m.run.train_end_to_end(model, tokens) if end_to_end else m.run.train_on(tokens, seen))]
    subjects = {m: m.subject() for m in stepped if m.saving or m.evaluating}
    with bar.paused():
        measured = evaluated(model, subjects)
    for member in stepped:
        member.after_step(bar, subjects.get(member), measured.get(member))


def evaluated(model: PreTrainedModel, subjects: Mapping[Member, Subject]) -> dict[Member, Measured]:
    """Held-out metrics of the members that evaluate now, and of those that keep their best; each kind shares its forwards."""
    whole = [m for m in subjects if m.evaluating]
    best = [m for m in subjects if not m.evaluating and m.cfg.save_best]
    found: dict[Member, Measured] = {}
    for due in filter(None, (whole, best)):
        tokens = due[0].plan.tokens.heldout
        found |= zip(due, heldout.measure(model, [subjects[m] for m in due], tokens, whole=due is whole), strict=True)
    return found


def interrupt(members: Sequence[Member], number: int) -> None:
    """Saves every unfinished run's state and raises Stopped."""
    state = State.preempted if number != signal.SIGINT and "SLURM_JOB_ID" in os.environ else State.interrupted
    stopped = Stopped(number)
    for member in members:
        if not member.closed:
            member.save_state()
            member.close(state, str(stopped))
    raise stopped
