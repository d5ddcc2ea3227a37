"""A pack: one stream of batches, one forward of the language model, many runs; and what happens between two batches."""

import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel

from sae_transcoder import checkpoint, display, evaluate, language_model, preflight, status
from sae_transcoder.config import Config, ConfigError, LossFn, run_dir, signature
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


class Stopped(Exception):
    """A signal ended the runs at a batch boundary, their state saved."""

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
        """Continues from the directory's training state where there is one. Raises ConfigError where that does not fit."""
        self.plan, self.cfg, self.directory = plan, plan.cfg, run_dir(plan.cfg)
        self.settings = {"dtype": str(dtype), "threads": torch.get_num_threads()}
        state = checkpoint.load_state(self.directory, signature(self.cfg), plan.device)
        self.run = Run(plan.cfg, plan.widths, len(plan.tokens.train), plan.device, plan.start_from)
        self.best = dict.fromkeys(self.run.coders, float("inf"))
        self.heldout: dict[str, float] = {}
        self.warning: str | None = None
        if state is not None:
            self._restore(state)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.logbook = Logbook(plan.cfg, self.directory, self.run.step)
        self.report(State.running)

    def _restore(self, state: dict[str, Any]) -> None:
        kept = state["settings"]
        if kept["dtype"] != self.settings["dtype"]:
            raise ConfigError(
                f"dtype={self.cfg.dtype}: {self.directory} was begun with {kept['dtype']} on another device, "
                f"here it would be {self.settings['dtype']}; set device as it was, or begin a new run with dtype set"
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
            bar.fvu = evaluate.mean([v for name, v in values.items() if name.startswith("fvu/")])
        if saving:
            values |= self.export(model)
        if cfg.keep_every and run.step % cfg.keep_every == 0:
            checkpoint.export(run.exported(), self.directory / "snapshots" / f"step{run.step}_tokens{run.tokens}")
        if values:
            self.logbook.log(run.step, {"tokens": run.tokens} | values)
        if saving and not run.done:
            self.save_state()
        if time.monotonic() - self.reported > HEARTBEAT_EVERY:
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

    def pairs(self, point: str, seen: Activations, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The coder's input and target at a hookpoint, tokens that do not count left out."""
        return self.run.pairs(point, seen, self.run.counted(tokens))

    def save_state(self) -> None:
        """Keeps all that the rest of the run depends on."""
        state = {"run": self.run.state(), "best": self.best, "heldout": self.heldout, "rng": torch.get_rng_state()}
        checkpoint.save_state(self.directory, signature(self.cfg), state | {"settings": self.settings})

    def close(self, state: State, why: str | None = None, tokens_per_s: float = 0.0) -> None:
        """Ends the tracker's run and says in status.json how it ended."""
        self.logbook.finish(0 if state == State.done else 1)
        try:
            self.report(state, why, tokens_per_s)
        except OSError as error:  # a full disk, which is likely what ended the run
            log.error("%s: status.json could not be written (%s)", self.directory, error)
        if state == State.done:
            checkpoint.drop_state(self.directory)


# What runs of one pack have in common: they see the same batches and the same activations.
SHARED = (
    *("model_name", "revision", "dtype", "dataset_kind", "dataset_name", "dataset_config", "dataset_split", "text_column"),
    *("tokens_column", "tokens_dtype", "max_samples", "max_seq_length", "shuffle_seed", "shuffle_buffer", "eval_samples"),
    *("eval_split", "batch_size", "device", "threads", "deterministic", "cache_dir"),
)


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


def configure(cfg: Config) -> None:
    """Process-wide settings of torch."""
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    torch.set_float32_matmul_precision("high")  # as sparsify's Trainer.fit
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
    configure(first.cfg)
    members = [Member(plan, language_model.resolve_dtype(plan.cfg, plan.device)) for plan in plans]
    started = {m: m.run.tokens for m in members}
    for member in members:
        display.header(member.plan, console)
        log.info("%s", display.facts(member.plan))
        for note in filter(
            None, [member.run.step and f"continues after step {member.run.step:,}", member.warning, member.logbook.where]
        ):
            console.print(note, markup=False, soft_wrap=True)
    start = time.monotonic()
    longest = max(members, key=lambda m: m.run.length.batches)
    total = longest.run.length.samples * first.cfg.max_seq_length
    try:
        model = language_model.load(first.cfg, first.device)
        with StopSignal() as stop, display.Bar(console, longest.run.length.steps, total - started[longest]) as bar:
            while active := [m for m in members if not m.run.done]:
                batch(model, active, bar)
                bar.update(longest.run.step, longest.run.tokens - started[longest])
                if stop.number is not None and not all(m.run.done for m in members):
                    interrupt(members, stop.number)
        for member in members:
            member.close(State.done, tokens_per_s=bar.tokens_per_s)
    except Stopped:
        raise
    except BaseException as error:
        log.exception("failed")
        for member in members:
            member.close(State.failed, f"{type(error).__name__}: {error}")
        raise
    for member in members:
        display.closing(member.directory, member.run.step, time.monotonic() - start, member.heldout, console)
    return [Result(m.directory, m.run.exported(), m.heldout) for m in members]


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
        if member.run.done:
            member.close(State.done)
        else:
            member.save_state()
            member.close(state, str(stopped))
    raise stopped
