"""A pack: one stream of batches, one forward of the language model, many runs; and what happens between two batches."""

import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel

from sae_transcoder import checkpoint, display, evaluate, language_model, preflight, status
from sae_transcoder.config import Config, run_dir, run_name, signature
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


class Member:
    """A run of the pack with its directory: what it logs, saves and reports of itself."""

    def __init__(self, plan: Plan, model: PreTrainedModel):
        self.plan, self.cfg, self.model = plan, plan.cfg, model
        self.directory = run_dir(plan.cfg)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.run = Run(plan.cfg, plan.widths, len(plan.tokens.train), plan.device)
        self.logbook = Logbook(plan.cfg, self.directory)
        self.best: dict[str, tuple[float, SparseCoder]] = {name: (math.inf, coder) for name, coder in self.run.coders.items()}
        self.heldout: dict[str, float] = {}
        self.reported = 0.0
        self.report(State.running)

    def report(self, state: State, why: str | None = None, tokens_per_s: float = 0.0) -> None:
        """Writes status.json."""
        run = self.run
        self.reported = time.monotonic()
        values = Status(state, signature(self.cfg), run.step, run.length.steps, run.tokens, round(tokens_per_s, 1), why)
        status.write(self.directory, values)

    def pairs(self, point: str, seen: Activations, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The coder's input and target at a hookpoint, tokens that do not count left out."""
        return self.run.pairs(point, seen, self.run.counted(tokens))

    def after_step(self, bar: display.Bar) -> None:
        """What an optimizer step makes due: a line of metrics, a save."""
        run, cfg = self.run, self.cfg
        values: dict[str, float] = {}
        if run.step % cfg.log_every == 0 or run.done:
            values |= {"lr": run.lr_used, "k": run.k_used} | run.metrics()
            bar.fvu = evaluate.mean([v for name, v in values.items() if name.startswith("fvu/")])
        if run.step % cfg.save_every == 0 or run.done:
            values |= self.save()
        if values:
            self.logbook.log(run.step, {"tokens": run.tokens} | values)
        if time.monotonic() - self.reported > HEARTBEAT_EVERY:
            self.report(State.running, tokens_per_s=bar.tokens_per_s)

    def save(self) -> dict[str, float]:
        """Exports the coders; at the end, or when the best are kept, evaluates them. Returns held-out metrics."""
        coders = self.run.exported()
        checkpoint.export(coders, self.directory / "coders")
        if not (self.cfg.save_best or self.run.done):
            return {}
        heldout = self.plan.tokens.heldout
        self.heldout = evaluate.heldout_fvu(self.model, coders, self.run.hookpoint, self.pairs, heldout, self.cfg.batch_size)
        if self.cfg.save_best:
            better = {name for name, value in self.heldout.items() if value < self.best[name][0]}
            self.best |= {name: (self.heldout[name], coders[name]) for name in better}
            if better:
                checkpoint.export({name: coder for name, (_, coder) in self.best.items()}, self.directory / "best")
        return {f"heldout_fvu/{name}": value for name, value in self.heldout.items()}

    def close(self, state: State, why: str | None = None, tokens_per_s: float = 0.0) -> None:
        """Ends the tracker's run and says in status.json how it ended."""
        self.logbook.finish(0 if state == State.done else 1)
        self.report(state, why, tokens_per_s)


def configure(cfg: Config, device: torch.device) -> None:
    """Process-wide settings of torch."""
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    torch.set_float32_matmul_precision("high")  # as sparsify's Trainer.fit
    if cfg.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def train(cfgs: Sequence[Config]) -> list[Result]:
    """Trains runs that share model, data and batch size side by side, and returns their results in order.

    Raises ConfigError before anything is written where a run must be refused.
    """
    console = Console(highlight=False)
    plans = [preflight.plan(cfg) for cfg in cfgs]
    first = plans[0]
    configure(first.cfg, first.device)
    for plan in plans:
        display.header(plan, console)
        log.info("%s", display.facts(plan))
    model = language_model.load(first.cfg, first.device)
    members = [Member(plan, model) for plan in plans]
    start = time.monotonic()
    longest = max(members, key=lambda m: m.run.length.batches)
    total = longest.run.length.samples * first.cfg.max_seq_length
    try:
        with display.Bar(console, longest.run.length.steps, total) as bar:
            while active := [m for m in members if not m.run.done]:
                batch(model, active, bar)
        for member in members:
            member.close(State.done, tokens_per_s=bar.tokens_per_s)
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        why = "stopped by the user" if stopped else f"{type(error).__name__}: {error}"
        for member in members:
            member.close(State.interrupted if stopped else State.failed, why)
        raise
    for member in members:
        display.closing(member.directory, member.run.step, time.monotonic() - start, member.heldout, console)
    return [Result(m.directory, m.run.exported(), m.heldout) for m in members]


def batch(model: PreTrainedModel, active: Sequence[Member], bar: display.Bar) -> None:
    """One batch: read, one forward to the last hookpoint, and every run trains on it."""
    lead = active[0]
    index, size = lead.run.batch, lead.cfg.batch_size
    rows = lead.plan.tokens.train[index * size : min((index + 1) * size, lead.run.length.samples)]
    tokens = torch.from_numpy(rows).to(lead.plan.device)
    points = list(dict.fromkeys(point for m in active for point in m.plan.widths))
    seen = language_model.capture(model, points, tokens)
    for member in active:
        if member.run.train_on(tokens, seen):
            member.after_step(bar)
    slowest = max(active, key=lambda m: m.run.length.batches)
    bar.update(slowest.run.step, slowest.run.tokens)


__all__ = ["Member", "Result", "run_name", "train"]
