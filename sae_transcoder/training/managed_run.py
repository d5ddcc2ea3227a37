"""A run of a pack with its directory: when it logs, exports and saves, and how it continues after a stop."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout

from sae_transcoder.config import ConfigError, run_dir, signature
from sae_transcoder.distributed import ALONE, Ranks, split_hookpoints
from sae_transcoder.evaluation.heldout import CodersToEvaluate, EvalResult
from sae_transcoder.language_model import compilation
from sae_transcoder.preflight.memory_estimate import coder_parameters
from sae_transcoder.preflight.plan import Plan
from sae_transcoder.process.atomic_files import sync
from sae_transcoder.run_store import data_origin, eval_file, status
from sae_transcoder.run_store.eval_file import Evaluation
from sae_transcoder.run_store.run_log import RunLog
from sae_transcoder.run_store.status import State
from sae_transcoder.trackers.logbook import Logbook
from sae_transcoder.training import checkpoint, resume_checks
from sae_transcoder.training.coder_copies import copy_coders
from sae_transcoder.training.coder_trainer import CoderTrainer
from sae_transcoder.training.collect_from_ranks import collect_coders, collect_metrics
from sae_transcoder.training.display import Bar
from sae_transcoder.training.divergence import refuse_diverged, refuse_untrained
from sae_transcoder.training.status_writer import StatusWriter
from sae_transcoder.training.trainer_state import rank_state, release, restore, training_state


class RunClaimed(ConfigError):
    """Another process trains the run, or has finished it in the meantime."""

    def __init__(self, directory: Path, *, done: bool):
        how = "done by now" if done else "another process has just started this run"
        super().__init__(f"{directory}: {how}; not started again")
        self.directory, self.done = directory, done

    def __reduce__(self) -> tuple[Any, ...]:  # ranks send it to each other
        return partial(RunClaimed, self.directory, done=self.done), ()


class ManagedRun:
    """A run of a pack with its directory. Only rank 0 logs, exports and reports; the other ranks hold their part of the training state."""

    def __init__(self, plan: Plan, dtype: torch.dtype, ranks: Ranks = ALONE):
        """Locks the directory, and restores the training state where there is one. ranks: all that train the run, also those that read other
        batches (`trainer.batch_ranks` share each batch).

        Raises ConfigError where the state does not fit, RunClaimed where another process has the directory.
        """
        self.plan, self.cfg, self.directory, self.ranks = plan, plan.cfg, run_dir(plan.cfg), ranks
        self.settings = resume_checks.current_settings(plan, dtype, ranks)
        self.opened = self.closed = self.finished = self.mid_batch = False
        self.pending: dict[str, float] | None = None  # the training metrics of a step whose `after_step` is still to come
        self.log: RunLog | None = None
        self.logbook: Logbook | None = None
        self.lock = status.lock(self.directory)
        if not ranks.leads:
            self._prepare()
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(timeout=status.LOCK_TIMEOUT)
        except Timeout:
            raise RunClaimed(self.directory, done=False) from None
        try:
            self._prepare()
        except BaseException:
            self.lock.release()
            raise

    def _prepare(self) -> None:
        """Makes the trainer, and restores its state where there is one."""
        plan, cfg = self.plan, self.cfg
        current = status.read(self.directory)
        if current is not None and current.state == State.done:
            raise RunClaimed(self.directory, done=True)
        state = checkpoint.load_state(self.directory, signature(cfg))
        batch_ranks, local_hookpoints = self.ranks, None
        if cfg.distribute_modules:
            num_parameters = {point: coder_parameters(cfg, width) for point, width in plan.widths.items()}
            self.hookpoints_by_rank = split_hookpoints(num_parameters, self.ranks.size)
            batch_ranks, local_hookpoints = ALONE, self.hookpoints_by_rank[self.ranks.rank]
        num_samples = len(plan.tokens.train)
        self.trainer = CoderTrainer(cfg, plan.widths, num_samples, plan.device, plan.start_from, batch_ranks, local_hookpoints)
        self.status = StatusWriter(self.directory, signature(cfg), self.trainer)
        self.best = dict.fromkeys(self.trainer.names, float("inf"))
        self.evaluation: Evaluation | None = None  # on rank 0, once the run is done
        self.warning: str | None = None
        if state is not None:
            with checkpoint.of_this_version(self.directory):
                self._restore(state)

    def _restore(self, state: dict[str, Any]) -> None:
        self.warning = resume_checks.check_settings(self.directory, self.cfg, state["settings"], self.settings)
        trainer_state, rng = state["run"], state["rng"]
        if not self.ranks.leads:
            of_rank = checkpoint.load_rank_state(self.directory, signature(self.cfg), self.ranks.rank, trainer_state["counts"][0])
            trainer_state, rng = trainer_state | of_rank["run"], of_rank["rng"]
        restore(self.trainer, trainer_state)
        self.best, self.pending = state["best"], state.get("pending")  # earlier versions had no such steps
        torch.set_rng_state(rng.cpu())

    def open(self) -> None:
        """Writes that the run is running, and opens its log and its tracker."""
        if self.ranks.leads:
            self.log = RunLog(self.directory)
            try:
                self.status.write(State.running)  # first: a folder that holds files but no status.json is refused
                data_origin.write(self.directory, self.plan.tokens.origin)
                self.logbook = Logbook(self.cfg, self.directory, self.trainer.step)
            except BaseException as error:  # a tracker that cannot be opened, a full disk
                self.status.try_write(State.failed, f"{type(error).__name__}: {error}")
                self.leave()
                raise
        self.opened = True

    @property
    def should_log(self) -> bool:
        """Whether a line of metrics is due after this step."""
        return self.trainer.step % self.cfg.log_every == 0 or self.trainer.done

    @property
    def should_save(self) -> bool:
        """Whether the coders and the training state are due to be saved after this step."""
        return self.trainer.step % self.cfg.save_every == 0 or self.trainer.done

    @property
    def should_evaluate(self) -> bool:
        """Whether all held-out metrics are due after this step."""
        every = self.cfg.eval_every
        return self.trainer.done or (every is not None and self.trainer.step % every == 0)

    @property
    def should_snapshot(self) -> bool:
        """Whether a snapshot of the coders, which is never replaced, is due after this step."""
        return self.cfg.keep_every is not None and self.trainer.step % self.cfg.keep_every == 0

    @property
    def should_copy_coders(self) -> bool:
        """Whether copies of the coders are needed after this step, for any of these."""
        return self.should_save or self.should_evaluate or self.should_snapshot

    def coders_to_evaluate(self) -> CodersToEvaluate | None:
        """Copies of the coders of all ranks as they would be published now; None on ranks other than 0."""
        if not self.cfg.distribute_modules:
            return CodersToEvaluate(self.cfg, copy_coders(self.trainer), self.plan.tokens.origin) if self.ranks.leads else None
        local = copy_coders(self.trainer)
        coders = collect_coders(local, self.trainer.names, self.hookpoints_by_rank, self.ranks, self.plan.device)
        return CodersToEvaluate(self.cfg, coders, self.plan.tokens.origin) if self.ranks.leads else None

    def training_metrics(self) -> dict[str, float]:
        """The training part of a line of metrics: rate, k, and losses and dead fractions of the coders of all ranks; empty where none is due."""
        if not self.should_log:
            return {}
        metrics = self.trainer.metrics()
        if self.cfg.distribute_modules:
            metrics = collect_metrics(metrics, self.trainer.names, self.ranks)
        return {"lr": self.trainer.lr_used, "k": self.trainer.k_used} | metrics

    def after_step(self, bar: Bar, coders: CodersToEvaluate | None, result: EvalResult | None) -> None:
        """Does what is due after an optimizer step: exports coders, writes eval.json and a line of metrics, saves the training state.

        coders: copies, where the run publishes them now and this is rank 0; result: their held-out metrics,
        where they were evaluated.
        """
        trainer = self.trainer
        metrics, self.pending = self.pending or {}, None
        if trainer.done:
            refuse_untrained(name for name in trainer.coders if name not in trainer.biases_set)
        if coders:
            self._export(coders)
        if coders and result:
            if self.cfg.save_best and self.should_save:
                self.keep_best(coders, result)
            if self.should_evaluate:
                self.evaluation = result.evaluation(coders, trainer.step, trainer.tokens)
                eval_file.write(self.directory, self.evaluation)
            metrics = metrics | result.values()
        if metrics and self.logbook:
            self.logbook.log(trainer.step, {"tokens": trainer.tokens} | metrics)
            refuse_diverged(trainer.step, metrics)
        if trainer.done:
            self.close(State.done, tokens_per_s=bar.tokens_per_s)
        elif self.should_save:
            self.save_state()

    def _export(self, coders: CodersToEvaluate) -> None:
        trainer = self.trainer
        if self.should_save:
            checkpoint.export(coders.coders, self.directory / "coders")
            trainer.train_config.save_json(self.directory / "coders" / "config.json")  # as sparsify's checkpoints have it
        if self.should_snapshot:
            checkpoint.export(coders.coders, self.directory / "snapshots" / f"step{trainer.step}_tokens{trainer.tokens}")

    def keep_best(self, coders: CodersToEvaluate, result: EvalResult) -> None:
        """Exports to best/ the coders whose held-out FVU, or end-to-end loss where they train by one, is the lowest so far."""
        better = {name: loss for name, loss in result.loss(self.cfg.loss_fn).items() if loss < self.best[name]}
        self.best |= better
        checkpoint.export({name: coders.coders[name] for name in better}, self.directory / "best")

    def heartbeat(self, bar: Bar) -> None:
        """Writes that the run is alive, every few seconds."""
        if self.ranks.leads and not self.closed:
            self.status.heartbeat(bar.tokens_per_s)

    def save_state(self) -> None:
        """Saves all that the rest of the run depends on, after the lines of metrics that led to it."""
        trainer, ranks, rng = self.trainer, self.ranks, torch.get_rng_state()
        if not ranks.leads:
            of_rank = {"run": training_state(trainer) if self.cfg.distribute_modules else rank_state(trainer), "rng": rng}
            checkpoint.save_rank_state(self.directory, signature(self.cfg), ranks.rank, trainer.batch, of_rank)
        ranks.all_gather(None)  # every rank's part is there before state.pt counts on it
        if not ranks.leads:
            return
        if (self.directory / "metrics.jsonl").exists():
            sync(self.directory / "metrics.jsonl")
        is_compiled = self.settings["compile_model"] and compilation.failure(self.cfg) is None
        settings = self.settings | {"compile_model": is_compiled}
        state = {"run": training_state(trainer), "best": self.best, "pending": self.pending, "rng": rng, "settings": settings}
        checkpoint.save_state(self.directory, signature(self.cfg), state)
        if ranks.size > 1:
            checkpoint.drop_other_rank_states(self.directory, trainer.batch)

    def close(self, state: State, why: str | None = None, tokens_per_s: float = 0.0, *, writes_status: bool | None = None) -> None:
        """Ends the tracker's run, writes to status.json how the run ended, frees its memory and unlocks the directory; once.

        writes_status: whether this rank writes status.json; None: rank 0 only.
        """
        if self.closed:
            return
        if self.logbook:
            self.logbook.finish(0 if state == State.done else 1)
        if self.ranks.leads if writes_status is None else writes_status:
            self.status.try_write(state, why, tokens_per_s)
        if state == State.done:
            self.finished = True
            if self.ranks.leads:
                checkpoint.drop_state(self.directory)
        self.leave()

    def leave(self) -> None:
        """Frees the memory and unlocks the directory."""
        self.closed = True
        release(self.trainer)
        if self.log:
            self.log.close()
        self.lock.release()
