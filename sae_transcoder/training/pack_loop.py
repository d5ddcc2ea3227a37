"""The loop of a pack: one stream of batches, one forward of the language model, many runs."""

import os
import signal
import time
from collections.abc import Sequence
from typing import NoReturn

import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel

from sae_transcoder.config import LossFn
from sae_transcoder.distributed import Ranks, rank_rows
from sae_transcoder.language_model import forward
from sae_transcoder.language_model.forward import Activations
from sae_transcoder.preflight import time_estimate
from sae_transcoder.preflight.time_estimate import Estimate
from sae_transcoder.process.broken_device import raise_if_broken
from sae_transcoder.process.memory_errors import is_out_of_memory
from sae_transcoder.process.stop_signal import Stopped, StopSignal
from sae_transcoder.process.to_device import copy_to_device
from sae_transcoder.run_store.status import State
from sae_transcoder.training import display
from sae_transcoder.training.batched_training import grouped, train_on_batch
from sae_transcoder.training.close_pack import close_pack
from sae_transcoder.training.end_to_end import train_end_to_end
from sae_transcoder.training.failure import fail, tell
from sae_transcoder.training.managed_run import ManagedRun
from sae_transcoder.training.read_ahead import read_ahead
from sae_transcoder.training.step_end import Errors, after_step, isolate_failure


def train_batches(model: PreTrainedModel, runs: Sequence[ManagedRun], stop: StopSignal, console: Console, ranks: Ranks) -> Errors:
    """Trains batch after batch until every run is done or has failed. Returns the error of each failed run. Raises Stopped after a signal,
    DeviceBroken where the GPU fails.

    Where memory does not suffice for all, it closes the unfinished runs, saves those whose state is consistent, and returns.
    """
    start = time.monotonic()
    longest = max(runs, key=lambda run: run.trainer.length.batches)
    tokens = longest.trainer.length.samples * longest.cfg.max_seq_length
    errors: Errors = {}
    plans, begins = [run.plan for run in runs], not any(run.trainer.batch for run in runs)
    expected = time_estimate.estimate(plans) or Estimate(None, None)
    speed = tokens / expected.training if expected.training else None
    # Of several ranks one evaluates, and the others wait for it to end.
    in_evaluation = stop if ranks.size == 1 else None
    with display.Bar(
        console, longest.trainer.length.steps, tokens - longest.trainer.tokens, expected.evaluation, speed, in_evaluation
    ) as bar:
        bar.follow(longest.trainer)
        while active := [run for run in runs if not run.closed]:
            try:
                batch_errors = train_next_batch(model, active, bar)
            except Stopped as stopped:
                interrupt(active, stopped.number, ranks)
            for error in batch_errors.values():
                raise_if_broken(error)
            bar.show()
            if len(active) > 1 and any(map(is_out_of_memory, batch_errors.values())):
                close_pack(active, list(batch_errors.values()))
                break
            for run, error in batch_errors.items():
                errors[run] = fail(run, error)
                tell(run.directory, error, len(runs), console)
            for run in active:
                run.heartbeat(bar)
            number = ranks.max_integer(stop.number or 0)  # a signal reaches ranks at different times
            if number and not all(run.closed for run in runs):
                interrupt(runs, number, ranks)
        if begins and ranks.leads and all(run.finished for run in runs):
            time_estimate.add_training(plans, bar.seconds)
    for run in runs:
        if run.finished and run.evaluation:
            display.closing_line(run.directory, run.trainer.step, time.monotonic() - start, run.evaluation, console)
    return errors


def train_next_batch(model: PreTrainedModel, active: Sequence[ManagedRun], bar: display.Bar) -> Errors:
    """Reads the next batch, runs the forward to the last hookpoint, and trains every run that has come to this batch. Returns the error of
    each failed run. What was left of a step when a signal came is done first."""
    if pending := [run for run in active if run.pending is not None]:
        return after_step(model, pending, bar)
    index = min(run.trainer.batch for run in active)  # resumed runs may be ahead of others
    runs = [run for run in active if run.trainer.batch == index]
    longest = max(runs, key=lambda run: run.trainer.length.samples)
    start, end = longest.trainer.length.rows(index)
    runs = [run for run in runs if run.trainer.length.rows(index)[1] == end]  # a run with a shorter last batch trains on it alone
    errors: Errors = {}
    is_end_to_end = longest.cfg.loss_fn != LossFn.fvu  # then the run is alone
    try:
        batch_ranks = longest.trainer.batch_ranks
        tokens = torch.from_numpy(longest.plan.tokens.train[rank_rows(start, end, batch_ranks.rank, batch_ranks.size)])
        tokens_on_device = copy_to_device(longest.plan.device, tokens)
        activations = {} if is_end_to_end else captured(model, runs, tokens_on_device)
        read_ahead([run.trainer for run in runs], tokens, activations)
    except Exception as error:
        if longest.ranks.size > 1:
            raise
        return dict.fromkeys(runs, error)
    stepped: list[ManagedRun] = []
    run_of = {run.trainer: run for run in runs}
    for trainers in grouped(list(run_of)):
        group = [run_of[trainer] for trainer in trainers]
        for run in group:
            run.mid_batch = True
        with isolate_failure(group, errors):
            if is_end_to_end:
                stepped += group if train_end_to_end(longest.trainer, model, tokens, tokens_on_device) else []
            else:
                stepped += [run_of[trainer] for trainer in train_on_batch(trainers, tokens, activations)]
    del activations
    errors |= after_step(model, stepped, bar)
    for run in runs:
        run.mid_batch = run in errors
    return errors


def captured(model: PreTrainedModel, runs: Sequence[ManagedRun], tokens: Tensor) -> dict[str, Activations]:
    """The activations at the runs' hookpoints for `tokens` [sequence, position]; a rank may have no sequence of a short batch."""
    hookpoints = list(dict.fromkeys(point for run in runs for point in run.trainer.hookpoints))
    if len(tokens):
        return forward.capture(model, hookpoints, tokens, runs[0].cfg.forward_batch_size)
    widths = {point: width for run in runs for point, width in run.plan.widths.items()}
    empty = {point: torch.empty(0, tokens.shape[1], widths[point], device=tokens.device) for point in hookpoints}
    return {point: Activations(values, values) for point, values in empty.items()}


def interrupt(runs: Sequence[ManagedRun], number: int, ranks: Ranks) -> NoReturn:
    """Saves every unfinished run's state and raises Stopped. A run that failed in the middle of this batch keeps its last save."""
    state = State.preempted if number != signal.SIGINT and "SLURM_JOB_ID" in os.environ else State.interrupted
    stopped = Stopped(number)
    for run in runs:
        if not run.closed:
            try:
                if run.pending is not None or not run.mid_batch:
                    run.save_state()
            except Exception as error:  # a full disk: the others are still saved
                raise_if_broken(error)
                if ranks.size > 1:
                    raise
                fail(run, error)
            run.close(state, str(stopped))
    ranks.all_gather(None)  # none leaves before rank 0 has written the state
    raise stopped
