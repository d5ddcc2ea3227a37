"""What an optimizer step makes due for the runs of a pack: evaluation, metrics, exports, saves; and whose fault it is if that fails."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

from transformers import PreTrainedModel

from sae_transcoder.evaluation import heldout
from sae_transcoder.evaluation.heldout import CodersToEvaluate, EvalResult
from sae_transcoder.process.memory_errors import is_out_of_memory
from sae_transcoder.run_store.run_log import log_to_run
from sae_transcoder.training import display
from sae_transcoder.training.managed_run import ManagedRun
from sae_transcoder.training.out_of_memory import forget, free_memory


def after_step(
    model: PreTrainedModel, stepped: Sequence[ManagedRun], bar: display.Bar, failed: dict[ManagedRun, Exception]
) -> None:
    """What the step just made makes due: metrics, evaluation, exports, saves."""
    values: dict[ManagedRun, dict[str, float]] = {}
    for member in stepped:
        with isolate_failure([member], failed):
            values[member] = member.training_metrics()  # now, for the other ranks wait while the first one evaluates
            if values[member] or member.should_publish:
                member.ranks.settle(member.plan.device)
    publish(model, [member for member in stepped if member not in failed], values, bar, failed)


def publish(
    model: PreTrainedModel,
    stepped: Sequence[ManagedRun],
    values: Mapping[ManagedRun, dict[str, float]],
    bar: display.Bar,
    failed: dict[ManagedRun, Exception],
) -> None:
    """What the step makes due once its metrics, `values`, are taken; one run after the other where memory does not suffice for copies of all
    coders at once."""
    subjects: dict[ManagedRun, CodersToEvaluate] = {}
    for member in stepped:
        if member.should_publish:
            with isolate_failure([member], failed):
                if subject := member.subject():
                    subjects[member] = subject
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
                publish(model, [member], values, bar, failed)
        return
    for member in stepped:
        if member not in failed:
            with isolate_failure([member], failed):
                member.after_step(bar, values[member], subjects.get(member), measured.get(member))


@contextmanager
def isolate_failure(members: Sequence[ManagedRun], failed: dict[ManagedRun, Exception]) -> Iterator[None]:
    """What fails while it is open is the failure of these runs; of several ranks, which no longer do the same then, of all."""
    try:
        with log_to_run(members[0].directory) if len(members) == 1 else nullcontext():
            yield
    except Exception as error:
        if members[0].ranks.size > 1:
            raise
        failed.update(dict.fromkeys(members, error))


def evaluated(
    model: PreTrainedModel, subjects: Mapping[ManagedRun, CodersToEvaluate], failed: dict[ManagedRun, Exception]
) -> dict[ManagedRun, EvalResult]:
    """Held-out metrics of the members that evaluate now, and of those that keep their best; each kind shares its forwards."""
    whole = [m for m in subjects if m.should_evaluate]
    best = [m for m in subjects if not m.should_evaluate and m.should_save and m.cfg.save_best]
    found: dict[ManagedRun, EvalResult] = {}

    def measure(due: Sequence[ManagedRun], *, whole: bool) -> None:
        tokens = due[0].plan.tokens.heldout
        try:
            found.update(zip(due, heldout.measure(model, [subjects[m] for m in due], tokens, all_metrics=whole), strict=True))
        except Exception as error:
            if due[0].ranks.size > 1:
                raise
            if len(due) == 1:
                failed[due[0]] = error
            for member in due if len(due) > 1 else ():  # whose fault it is shows when each is measured alone
                measure([member], whole=whole)

    if whole:
        measure(whole, whole=True)
    if best:
        measure(best, whole=False)
    return found
