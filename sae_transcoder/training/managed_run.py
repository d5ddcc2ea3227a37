"""A run of a pack with its directory: what it logs, exports, saves and reports of itself, and how it goes on after a stop."""

import hashlib
import logging
import math
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout

from sae_transcoder.coder.names import hookpoint_of
from sae_transcoder.config import ConfigError, run_dir, signature
from sae_transcoder.distributed import ALONE, Ranks, shares
from sae_transcoder.evaluation.heldout import CodersToEvaluate, EvalResult
from sae_transcoder.language_model import compilation
from sae_transcoder.preflight.memory import coder_parameters
from sae_transcoder.preflight.plan import Plan
from sae_transcoder.process.atomic_files import sync
from sae_transcoder.run_store import eval_file, status
from sae_transcoder.run_store.eval_file import Evaluation
from sae_transcoder.run_store.run_log import RunLog
from sae_transcoder.run_store.status import State, Status
from sae_transcoder.trackers.logbook import Logbook
from sae_transcoder.training import checkpoint
from sae_transcoder.training.coder_trainer import CoderTrainer
from sae_transcoder.training.display import Bar

log = logging.getLogger(__name__)

# Settings that leave the result what it is but for its last digits, as they took effect; and what they were in states that lack them.
ROUNDING: dict[str, Any] = {"threads": None, "forward_batch_size": None, "compile_model": False}
HEARTBEAT_EVERY = 5.0  # seconds


class RunClaimed(ConfigError):
    """Another process trains the run, or has done it in the meantime."""

    def __init__(self, directory: Path, *, done: bool):
        how = "done by now" if done else "another process has just started this run"
        super().__init__(f"{directory}: {how}; not started again")
        self.directory, self.done = directory, done

    def __reduce__(self) -> tuple[Any, ...]:  # ranks tell each other
        return partial(RunClaimed, self.directory, done=self.done), ()


class Diverged(Exception):
    """A run's loss is no number any more, or so large that it will not come back."""


HOPELESS = 1e4  # an FVU; coders that learn are below 1, and start at most a few times above


def refuse_diverged(step: int, values: Mapping[str, float]) -> None:
    """Raises Diverged for a training loss that is not finite, or an FVU beyond hope."""
    losses = {name: value for name, value in values.items() if name.split("/")[0] in ("fvu", "auxk", "multi_topk_fvu", "ce", "kl")}
    for name, value in losses.items():
        if not math.isfinite(value) or (name.startswith("fvu") and value > HOPELESS):
            raise Diverged(f"{name} is {value:.3g} at step {step}: training diverged; lower lr")


class ManagedRun:
    """A run of the pack with its directory: what it logs, saves and reports of itself. Of several ranks only the first one does so; the
    others hold the run and their part of its training state."""

    def __init__(self, plan: Plan, dtype: torch.dtype, ranks: Ranks = ALONE):
        """Takes the directory, and continues from its training state where there is one.

        Raises ConfigError where that does not fit, RunClaimed where another process has taken the directory.
        """
        self.plan, self.cfg, self.directory, self.ranks = plan, plan.cfg, run_dir(plan.cfg), ranks
        self.settings = {
            "dtype": str(dtype),
            "threads": torch.get_num_threads(),
            "forward_batch_size": self.cfg.forward_batch_size,
            "compile_model": plan.uncompiled is None,
            "data": fingerprint(plan),
            "ranks": ranks.size,
        }
        self.closed = self.finished = self.amid_batch = False
        self.log: RunLog | None = None
        self.logbook: Logbook | None = None
        self.lock = status.lock(self.directory)
        if not ranks.leads:
            self._prepare()
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(timeout=status.LOOKING)
        except Timeout:
            raise RunClaimed(self.directory, done=False) from None
        try:
            self._prepare()
        except BaseException:
            self.lock.release()
            raise

    def _prepare(self) -> None:
        plan = self.plan
        found = status.read(self.directory)
        if found is not None and found.state == State.done:
            raise RunClaimed(self.directory, done=True)
        state = checkpoint.load_state(self.directory, signature(self.cfg))
        together = ALONE if self.cfg.distribute_modules else self.ranks
        sizes = {point: coder_parameters(plan.cfg, width) for point, width in plan.widths.items()}
        self.shares = shares(sizes, self.ranks.size) if self.cfg.distribute_modules else [list(sizes)]
        share = self.shares[self.ranks.rank] if self.cfg.distribute_modules else None
        self.run = CoderTrainer(plan.cfg, plan.widths, len(plan.tokens.train), plan.device, plan.start_from, together, share)
        self.best = dict.fromkeys(self.run.names, float("inf"))
        self.evaluation: Evaluation | None = None  # on the first rank, once the run is done
        self.warning: str | None = None
        if state is not None:
            self._restore(state)

    def open(self) -> None:
        """Says that the run goes on, and opens its log and its tracker."""
        if not self.ranks.leads:
            return
        self.log = RunLog(self.directory)
        try:
            self.report(State.running)  # first: a folder of files without it is taken for somebody else's
            self.logbook = Logbook(self.cfg, self.directory, self.run.step)
        except BaseException as error:  # a tracker that cannot be opened, a full disk
            self.try_report(State.failed, f"{type(error).__name__}: {error}")
            self.leave()
            raise

    def _restore(self, state: dict[str, Any]) -> None:
        kept = state["settings"]
        if kept.get("ranks", 1) != self.ranks.size:
            raise ConfigError(
                f"{self.directory} was begun on {kept.get('ranks', 1)} ranks, here are {self.ranks.size}: start it with as many "
                f"(torchrun --nproc-per-node, tasks), or remove {self.directory / 'resume'} to train it from its start"
            )
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
        before = ROUNDING | {name: kept[name] for name in ROUNDING if name in kept}
        if changed := [name for name in ROUNDING if before[name] != self.settings[name]]:
            now, then = (", ".join(f"{name}={values[name]}" for name in changed) for values in (self.settings, before))
            self.warning = f"{now}, the run was begun with {then}: it goes on, but not bit for bit as if it had never stopped"
        run, rng = state["run"], state["rng"]
        if not self.ranks.leads:
            own = checkpoint.load_rank_state(self.directory, signature(self.cfg), self.ranks.rank, run["counts"][0])
            run, rng = run | own["run"], own["rng"]
        self.run.restore(run)
        self.best = state["best"]
        torch.set_rng_state(rng.cpu())

    def report(self, state: State, why: str | None = None, tokens_per_s: float = 0.0) -> None:
        """Writes status.json."""
        run = self.run
        self.reported = time.monotonic()
        values = Status(state, signature(self.cfg), run.step, run.length.steps, run.tokens, round(tokens_per_s, 1), why)
        status.write(self.directory, values)

    def try_report(self, state: State, why: str | None = None, tokens_per_s: float = 0.0) -> None:
        """The same, but the run goes on where it cannot be written."""
        try:
            self.report(state, why, tokens_per_s)
        except OSError as error:  # a full disk
            log.error("%s: status.json could not be written (%s)", self.directory, error)

    @property
    def should_log(self) -> bool:
        """Whether the step just made is one after which a line of metrics is written."""
        return self.run.step % self.cfg.log_every == 0 or self.run.done

    @property
    def should_save(self) -> bool:
        """Whether the step just made is one after which the run is saved."""
        return self.run.step % self.cfg.save_every == 0 or self.run.done

    @property
    def should_evaluate(self) -> bool:
        """Whether the step just made is one after which all held-out metrics are taken."""
        every = self.cfg.eval_every
        return self.run.done or (every is not None and self.run.step % every == 0)

    @property
    def should_snapshot(self) -> bool:
        """Whether the step just made is one whose coders are kept for good."""
        return self.cfg.keep_every is not None and self.run.step % self.cfg.keep_every == 0

    @property
    def should_publish(self) -> bool:
        """Whether the step just made is one after which the coders are copied, for any of these."""
        return self.should_save or self.should_evaluate or self.should_snapshot

    def subject(self) -> CodersToEvaluate | None:
        """The coders of all ranks as they would be published now; on the first rank, None on others."""
        if not self.cfg.distribute_modules:
            return CodersToEvaluate(self.cfg, self.run.exported()) if self.ranks.leads else None
        own, found = self.run.exported(), {}
        for name in self.run.names:
            rank = next(r for r, share in enumerate(self.shares) if hookpoint_of(name) in share)
            coder = self.ranks.to_first(own[name].cpu() if rank == self.ranks.rank > 0 else own.get(name), rank)
            if coder is not None:
                found[name] = coder.to(self.plan.device)
        return CodersToEvaluate(self.cfg, found) if self.ranks.leads else None

    def training_metrics(self) -> dict[str, float]:
        """What a line of metrics says of training, on all ranks: rate, k, and losses and dead fractions of all coders in the order of a process
        alone; nothing where no line is due."""
        if not self.should_log:
            return {}
        used = {"lr": self.run.lr_used, "k": self.run.k_used}
        if not self.cfg.distribute_modules:
            return used | self.run.metrics()
        every = {name: value for part in self.ranks.gather(self.run.metrics()) for name, value in part.items()}
        order = {name: i for i, name in enumerate(self.run.names)}
        return used | dict(sorted(every.items(), key=lambda m: (m[0].startswith("dead_fraction"), order[m[0].partition("/")[2]])))

    def after_step(self, bar: Bar, values: dict[str, float], subject: CodersToEvaluate | None, measured: EvalResult | None) -> None:
        """What an optimizer step makes due: a line of metrics, exports, eval.json, a save of the training state.

        values: training_metrics; subject: the coders, where the run saves, keeps or evaluates them now and this is the first rank; measured:
        their held-out metrics, where they were taken.
        """
        run, cfg = self.run, self.cfg
        if values:
            bar.note([value for name, value in values.items() if name.startswith("fvu/")])
        if subject and self.should_save:
            checkpoint.export(subject.coders, self.directory / "coders")
            run.train_config.save_json(self.directory / "coders" / "config.json")  # as sparsify's checkpoints have it
        if subject and self.should_snapshot:
            checkpoint.export(subject.coders, self.directory / "snapshots" / f"step{run.step}_tokens{run.tokens}")
        if subject and measured:
            if cfg.save_best and self.should_save:
                self.keep_best(subject, measured)
            if self.should_evaluate:
                self.evaluation = measured.evaluation(subject, run.step, run.tokens)
                eval_file.write(self.directory, self.evaluation)
            values = values | measured.values()
        if values and self.logbook:
            self.logbook.log(run.step, {"tokens": run.tokens} | values)
            refuse_diverged(run.step, values)
        if run.done:
            self.close(State.done, tokens_per_s=bar.tokens_per_s)
        elif self.should_save:
            self.save_state()

    def keep_best(self, subject: CodersToEvaluate, measured: EvalResult) -> None:
        """Exports to best/ the coders whose held-out FVU, with an end-to-end loss that loss, is the lowest so far."""
        better = {name: loss for name, loss in measured.loss(self.cfg.loss_fn).items() if loss < self.best[name]}
        self.best |= better
        checkpoint.export({name: subject.coders[name] for name in better}, self.directory / "best")

    def heartbeat(self, bar: Bar) -> None:
        """Says now and then that the run goes on."""
        if self.ranks.leads and not self.closed and time.monotonic() - self.reported > HEARTBEAT_EVERY:
            self.try_report(State.running, tokens_per_s=bar.tokens_per_s)

    def save_state(self) -> None:
        """Keeps all that the rest of the run depends on, after the lines of metrics that led to it."""
        run, ranks = self.run, self.ranks
        if not ranks.leads:
            own = {"run": run.state() if self.cfg.distribute_modules else run.own_state(), "rng": torch.get_rng_state()}
            checkpoint.save_rank_state(self.directory, signature(self.cfg), ranks.rank, run.batch, own)
        ranks.gather(None)  # every rank's part is there before state.pt counts on it
        if not ranks.leads:
            return
        if (self.directory / "metrics.jsonl").exists():
            sync(self.directory / "metrics.jsonl")
        state = {"run": run.state(), "best": self.best, "rng": torch.get_rng_state()}
        compiles = self.settings["compile_model"] and compilation.failure(self.cfg) is None
        settings = self.settings | {"compile_model": compiles}
        checkpoint.save_state(self.directory, signature(self.cfg), state | {"settings": settings})
        if ranks.size > 1:
            checkpoint.drop_other_rank_states(self.directory, run.batch)

    def close(self, state: State, why: str | None = None, tokens_per_s: float = 0.0, *, speaks: bool | None = None) -> None:
        """Ends the tracker's run, says in status.json how it ended, gives back its memory and leaves the directory; once.

        speaks: whether this rank says so, None: the first one.
        """
        if self.closed:
            return
        if self.logbook:
            self.logbook.finish(0 if state == State.done else 1)
        if self.ranks.leads if speaks is None else speaks:
            self.try_report(state, why, tokens_per_s)
        if state == State.done:
            self.finished = True
            if self.ranks.leads:
                checkpoint.drop_state(self.directory)
        self.leave()

    def leave(self) -> None:
        """Gives back the memory and the directory."""
        self.closed = True
        self.run.release()
        if self.log:
            self.log.close()
        self.lock.release()


def fingerprint(plan: Plan) -> str:
    """What tells a run's tokens from others: how many there are, the first and the last."""
    train, heldout = plan.tokens.train, plan.tokens.heldout
    parts = [train[:8], train[max(0, plan.length.samples - 8) : plan.length.samples], heldout[:8]]
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]
