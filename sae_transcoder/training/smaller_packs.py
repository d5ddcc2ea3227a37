"""Trains a pack, and where memory does not suffice for all its runs at once, its halves one after the other."""

import logging
import math
from collections.abc import Mapping, Sequence

from rich.console import Console
from transformers import PreTrainedModel

from sae_transcoder.distributed import Ranks
from sae_transcoder.language_model import layers
from sae_transcoder.preflight.plan import Plan
from sae_transcoder.process.broken_device import diagnosing
from sae_transcoder.process.free_memory import free_memory
from sae_transcoder.process.memory_errors import is_out_of_memory
from sae_transcoder.process.stop_signal import Stopped, StopSignal
from sae_transcoder.training.close_pack import close_pack
from sae_transcoder.training.failure import fail_together
from sae_transcoder.training.managed_run import ManagedRun
from sae_transcoder.training.outcome import Outcome, TrainedRun
from sae_transcoder.training.pack_loop import train_batches
from sae_transcoder.training.start_pack import announce, claim, open_runs, outcomes_of
from sae_transcoder.training.step_end import Errors

log = logging.getLogger(__name__)


def train_plans(plans: Mapping[int, Plan], stop: StopSignal, console: Console, ranks: Ranks) -> dict[int, Outcome]:
    """Trains a pack; where memory does not suffice, its halves one after the other, each run from where it stopped.

    With several ranks all fail with the first that does: raises that rank's error, on the others PeerFailed.
    """
    outcomes: dict[int, Outcome] = {}
    packs: list[tuple[Mapping[int, Plan], PreTrainedModel | None]] = [(plans, None)]
    while packs:
        pack, model = packs.pop(0)
        pack_outcomes, model = try_pack(pack, model, stop, console, ranks)
        outcomes |= pack_outcomes
        if unfinished := sorted(pack.keys() - pack_outcomes.keys()):
            log.warning("out of memory with %d runs side by side: they go on in two packs", len(pack))
            free_memory()
            middle = math.ceil(len(unfinished) / 2)
            halves = unfinished[:middle], unfinished[middle:]
            packs[:0] = [({i: pack[i] for i in half}, model) for half in halves if half]
    return outcomes


def try_pack(
    plans: Mapping[int, Plan], model: PreTrainedModel | None, stop: StopSignal, console: Console, ranks: Ranks
) -> tuple[dict[int, Outcome], PreTrainedModel | None]:
    """Trains a pack as long as memory suffices. Returns outcomes, none for a run that is not finished, and the language model, loaded if any
    run began."""
    runs: dict[int, ManagedRun] = {}
    outcomes: dict[int, Outcome] = {}
    errors: Errors = {}
    try:
        with diagnosing():
            runs, refused = claim(plans, ranks)
            refused |= open_runs(runs, ranks)
            outcomes = outcomes_of(refused, plans, console, ranks)
            runs = {i: run for i, run in runs.items() if run.opened}
            announce(list(runs.values()), console)
            if runs:
                model = loaded(list(plans.values())) if model is None else model
                errors = train_batches(model, list(runs.values()), stop, console, ranks)
    except Stopped:
        raise
    except BaseException as error:  # of the whole pack, such as a model that cannot be loaded
        opened = [run for run in runs.values() if run.opened]
        if ranks.size == 1 and isinstance(error, Exception) and is_out_of_memory(error) and len(opened) > 1:
            close_pack(opened, [error])
        else:
            fail_together(opened, error, ranks)
            raise
    for i, run in runs.items():
        if run in errors:
            outcomes[i] = errors[run]
        elif run.finished and (evaluation := ranks.broadcast(run.evaluation)):
            outcomes[i] = TrainedRun(run.cfg, run.directory, evaluation)
    return outcomes, model


def loaded(plans: Sequence[Plan]) -> PreTrainedModel:
    """The language model, with the layers and the head that the runs of a pack need."""
    most_demanding = max(plans, key=lambda plan: plan.cfg.eval_end_to_end)  # which needs the head
    layers_needed = [plan.model_layers for plan in plans]
    num_layers = None if None in layers_needed else max(filter(None, layers_needed))
    hookpoints = [point for plan in plans for point in plan.widths]
    return layers.load_for_hookpoints(most_demanding.cfg, most_demanding.device, num_layers, hookpoints)
