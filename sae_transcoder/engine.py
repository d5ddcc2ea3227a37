"""A pack: one stream of batches, one forward of the language model, many runs; and what happens between two batches."""

import hashlib
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from filelock import Timeout
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel

from sae_transcoder import checkpoint, display, evaluate, language_model, preflight, status
from sae_transcoder.config import Config, ConfigError, DatasetConfig, LossFn, ModelConfig, run_dir, signature
from sae_transcoder.files import sync
from sae_transcoder.language_model import Activations
from sae_transcoder.preflight import Plan
from sae_transcoder.run import Run
from sae_transcoder.status import State, Status
from sae_transcoder.trackers import Logbook
from sae_transcoder.upstream import SparseCoder

log = logging.getLogger(__name__)

HEARTBEAT_EVERY = 5.0  # seconds


@dataclass(frozen=True)
class Result:
    """A finished run: its directory, its coders {hookpoint: coder} as exported, and their held-out FVU."""

    directory: Path
    coders: dict[str, SparseCoder]
    heldout_fvu: dict[str, float]


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


class Member:
    """A run of the pack with its directory: what it logs, saves and reports of itself."""

    def __init__(self, plan: Plan, dtype: torch.dtype):
        """Continues from the directory's training state where there is one. Raises ConfigError where that does not fit, and writes nothing."""
        self.plan, self.cfg, self.directory = plan, plan.cfg, run_dir(plan.cfg)
        self.settings = {"dtype": str(dtype), "threads": torch.get_num_threads(), "data": fingerprint(plan)}
        state = checkpoint.load_state(self.directory, signature(self.cfg))
        self.run = Run(plan.cfg, plan.widths, len(plan.tokens.train), plan.device, plan.start_from)
        self.best = dict.fromkeys(self.run.coders, float("inf"))
        self.heldout: dict[str, float] = {}
        self.warning: str | None = None
        if state is not None:
            self._restore(state)
        self.closed = False

    def open(self) -> None:
        """Takes the directory. Raises ConfigError where another process has taken it in the meantime."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.lock = status.lock(self.directory)
        try:
            self.lock.acquire()
        except Timeout:
            raise ConfigError(f"{self.directory}: another process has just started this run; not started again") from None
        self.logbook = Logbook(self.cfg, self.directory, self.run.step)
        self.report(State.running)

    def _restore(self, state: dict[str, Any]) -> None:
        kept = state["settings"]
        if kept["dtype"] != self.settings["dtype"]:
            raise ConfigError(
                f"dtype={self.cfg.dtype}: {self.directory} was begun with {kept['dtype']} on another device, "
                f"here it would be {self.settings['dtype']}; set device as it was, or begin a new run with dtype set"
            )
        if kept["data"] != self.settings["data"]:
            raise ConfigError(
                f"dataset_name={self.cfg.dataset_name}: its tokens are not those that {self.directory} was begun with; "
                "restore the data as it was (files, Python version, hub revision), or begin a new run"
            )
        if kept["threads"] != self.settings["threads"]:
            self.warning = (
                f"threads={self.settings['threads']}, the run was begun with {kept['threads']}: "
                "it goes on, but not bit for bit as if it had never stopped"
            )
        self.run.restore(state["run"])
        self.best, self.heldout = state["best"], state["heldout"]
        torch.set_rng_state(state["rng"].cpu())

    def report(self, state: State, why: str | None = None, tokens_per_s: float = 0.0) -> None:
        """Writes status.json."""
        run = self.run
        self.reported = time.monotonic()
        values = Status(state, signature(self.cfg), run.step, run.length.steps, run.tokens, round(tokens_per_s, 1), why)
        status.write(self.directory, values)

    def after_step(self, model: PreTrainedModel, bar: display.Bar) -> None:
        """What an optimizer step makes due: a line of metrics, exports, a save of the training state."""
        run, cfg = self.run, self.cfg
        saving = run.step % cfg.save_every == 0 or run.done
        values: dict[str, float] = {}
        if run.step % cfg.log_every == 0 or run.done:
            values |= {"lr": run.lr_used, "k": run.k_used} | run.metrics()
            bar.note([value for name, value in values.items() if name.startswith("fvu/")])
        if saving:
            values |= self.export(model)
        if cfg.keep_every and run.step % cfg.keep_every == 0:
            checkpoint.export(run.exported(), self.directory / "snapshots" / f"step{run.step}_tokens{run.tokens}")
        if values:
            self.logbook.log(run.step, {"tokens": run.tokens} | values)
        if saving and not run.done:
            self.save_state()
        if run.done:
            self.close(State.done, tokens_per_s=bar.tokens_per_s)

    def heartbeat(self, bar: display.Bar) -> None:
        """Says now and then that the run goes on."""
        if not self.closed and time.monotonic() - self.reported > HEARTBEAT_EVERY:
            self.report(State.running, tokens_per_s=bar.tokens_per_s)

    def export(self, model: PreTrainedModel) -> dict[str, float]:
        """Exports the coders; at the end, or when the best are kept, evaluates them. Returns held-out metrics."""
        coders = self.run.exported()
        checkpoint.export(coders, self.directory / "coders")
        if not (self.cfg.save_best or self.run.done):
            return {}
        heldout = self.plan.tokens.heldout
        self.heldout = evaluate.heldout_fvu(model, coders, self.run.hookpoint, self.pairs, heldout, self.cfg.batch_size)
        values = {f"heldout_fvu/{name}": value for name, value in self.heldout.items()}
        scores = self.heldout
        if self.cfg.loss_fn != LossFn.fvu:
            scores = self.heldout_losses(model, coders)
            values |= {f"heldout_{self.cfg.loss_fn}{n.partition('/')[1]}{n.partition('/')[2]}": v for n, v in scores.items()}
        if self.cfg.save_best:
            better = {name: value for name, value in scores.items() if value < self.best[name]}
            self.best |= better
            checkpoint.export({name: coders[name] for name in better}, self.directory / "best")
        return values

    def heldout_losses(self, model: PreTrainedModel, coders: Mapping[str, SparseCoder]) -> dict[str, float]:
        """Each coder's held-out end-to-end loss, which is that of all coders of its seed together."""
        run, cfg = self.run, self.cfg
        losses: dict[str, float] = {}
        for names in run.by_seed():

            def replace(tokens: Tensor, names: dict[str, str] = names) -> Callable[[str, Activations], Tensor]:
                mask = run.counted(tokens)

                def by_coder(point: str, seen: Activations) -> Tensor:
                    kept = run.kept(seen, mask)
                    return language_model.spliced_output(
                        seen.output, kept, evaluate.reconstruct(coders[names[point]], run.pair(seen, kept)[0])
                    )

                return by_coder

            loss = evaluate.heldout_loss(model, replace, list(names), self.plan.tokens.heldout, cfg.batch_size, cfg.loss_fn)
            losses |= dict.fromkeys(names.values(), loss)
        return losses

    def pairs(self, seen: Activations, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The coder's input and target at a hookpoint, tokens that do not count left out."""
        return self.run.pair(seen, self.run.kept(seen, self.run.counted(tokens)))

    def save_state(self) -> None:
        """Keeps all that the rest of the run depends on, after the lines of metrics that led to it."""
        if (self.directory / "metrics.jsonl").exists():
            sync(self.directory / "metrics.jsonl")
        state = {"run": self.run.state(), "best": self.best, "heldout": self.heldout, "rng": torch.get_rng_state()}
        checkpoint.save_state(self.directory, signature(self.cfg), state | {"settings": self.settings})

    def close(self, state: State, why: str | None = None, tokens_per_s: float = 0.0) -> None:
        """Ends the tracker's run, says in status.json how it ended and leaves the directory; once."""
        if self.closed:
            return
        self.closed = True
        self.logbook.finish(0 if state == State.done else 1)
        try:
            self.report(state, why, tokens_per_s)
        except OSError as error:  # a full disk, which is likely what ended the run
            log.error("%s: status.json could not be written (%s)", self.directory, error)
        if state == State.done:
            checkpoint.drop_state(self.directory)
        self.lock.release()


def fingerprint(plan: Plan) -> str:
    """What tells a run's tokens from others: how many there are, the first and the last."""
    train, heldout = plan.tokens.train, plan.tokens.heldout
    parts = [train[:8], train[max(0, plan.length.samples - 8) : plan.length.samples], heldout[:8]]
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]


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
    return [Result(m.directory, m.run.exported(), m.heldout) for m in members]


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
        display.closing(member.directory, member.run.step, time.monotonic() - start, member.heldout, console)


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
    for member in turn:
        if member.run.train_end_to_end(model, tokens) if end_to_end else member.run.train_on(tokens, seen):
            member.after_step(model, bar)


def interrupt(members: Sequence[Member], number: int) -> None:
    """Saves every unfinished run's state and raises Stopped."""
    state = State.preempted if number != signal.SIGINT and "SLURM_JOB_ID" in os.environ else State.interrupted
    stopped = Stopped(number)
    for member in members:
        if not member.closed:
            member.save_state()
            member.close(state, str(stopped))
    raise stopped
