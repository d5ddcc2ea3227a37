"""What is due for the runs of a pack after an optimizer step: evaluation, metrics, exports, saves; and which run fails if that fails."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

from transformers import PreTrainedModel

from sae_transcoder.evaluation import heldout
from sae_transcoder.evaluation.heldout import CodersToEvaluate, EvalResult
from sae_transcoder.preflight import time_estimate
from sae_transcoder.process.free_memory import clear_traceback_locals, free_memory
from sae_transcoder.process.memory_errors import is_out_of_memory
from sae_transcoder.run_store.run_log import log_to_run
from sae_transcoder.training import display
from sae_transcoder.training.managed_run import ManagedRun

Errors = dict[ManagedRun, Exception]  # of each run that failed


def after_step(model: PreTrainedModel, stepped: Sequence[ManagedRun], bar: display.Bar) -> Errors:
    """Does what is due after an optimizer step. Returns the error of each failed run. Raises Stopped where a signal ends an evaluation; what is
    then still due is `pending` for each run."""
    errors: Errors = {}
    for run in stepped:
        with isolate_failure([run], errors):
            if run.pending is None:
                run.pending = run.training_metrics()  # now, because the other ranks wait while rank 0 evaluates
            bar.set_fvu(run.directory, [value for name, value in run.pending.items() if name.startswith("fvu/")])
            if run.pending or run.should_copy_coders:
                run.ranks.synchronize(run.plan.device)
    if any(run.should_copy_coders for run in stepped):
        bar.show()  # before the lines of an evaluation
    # All together; where memory does not suffice for copies of all coders, one run at a time.
    groups = [[run for run in stepped if run not in errors]]
    while groups:
        group = groups.pop(0)
        coders, results, group_errors = evaluate(model, group, bar)
        if len(group) > 1 and any(map(is_out_of_memory, group_errors.values())):
            del coders, results
            for error in filter(is_out_of_memory, group_errors.values()):
                clear_traceback_locals(error)
            errors |= {run: error for run, error in group_errors.items() if not is_out_of_memory(error)}
            del group_errors
            free_memory()
            groups = [[run] for run in group if run not in errors]
            continue
        errors |= group_errors
        for run in group:
            if run not in errors:
                with isolate_failure([run], errors):
                    run.after_step(bar, coders.get(run), results.get(run))
        del coders, results  # before the next run is copied
    return errors


@contextmanager
def isolate_failure(runs: Sequence[ManagedRun], errors: Errors) -> Iterator[None]:
    """Records an exception as the failure of these runs; with several ranks re-raises it, because they would diverge."""
    try:
        with log_to_run(runs[0].directory) if len(runs) == 1 else nullcontext():
            yield
    except Exception as error:
        if runs[0].ranks.size > 1:
            raise
        errors.update(dict.fromkeys(runs, error))


def evaluate(
    model: PreTrainedModel, runs: Sequence[ManagedRun], bar: display.Bar
) -> tuple[dict[ManagedRun, CodersToEvaluate], dict[ManagedRun, EvalResult], Errors]:
    """Copies the coders of the runs that publish them now, and evaluates those that are due; returns copies, held-out metrics and errors."""
    coders: dict[ManagedRun, CodersToEvaluate] = {}
    errors: Errors = {}
    for run in runs:
        if run.should_copy_coders:
            with isolate_failure([run], errors):
                if copies := run.coders_to_evaluate():
                    coders[run] = copies
    with bar.paused():
        results = heldout_metrics(model, coders, errors, bar)
    return coders, results, errors


def heldout_metrics(
    model: PreTrainedModel, coders: Mapping[ManagedRun, CodersToEvaluate], errors: Errors, bar: display.Bar
) -> dict[ManagedRun, EvalResult]:
    """Held-out metrics of the runs that evaluate now, and of those that look for their best coders; each kind shares its forwards."""
    results: dict[ManagedRun, EvalResult] = {}

    def measure(runs: Sequence[ManagedRun], *, all_metrics: bool) -> None:
        tokens, start = runs[0].plan.tokens.heldout, time.monotonic()
        try:
            measured = heldout.measure(
                model, [coders[run] for run in runs], tokens, all_metrics=all_metrics, progress=bar.show_progress
            )
            results.update(zip(runs, measured, strict=True))
        except Exception as error:
            if runs[0].ranks.size > 1:
                raise
            if len(runs) == 1:
                errors[runs[0]] = error
            for run in runs if len(runs) > 1 else ():  # each alone, which shows whose failure it is
                measure([run], all_metrics=all_metrics)
        else:
            if all_metrics:
                time_estimate.add_evaluation([run.plan for run in runs], time.monotonic() - start)

    if evaluating := [run for run in coders if run.should_evaluate]:
        measure(evaluating, all_metrics=True)
    if comparing := [run for run in coders if not run.should_evaluate and run.should_save and run.cfg.save_best]:
        measure(comparing, all_metrics=False)
    return results
