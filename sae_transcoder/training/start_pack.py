"""How the runs of a pack begin: each takes its directory, continues from its state, and the terminal shows what will be trained."""

import logging
from collections.abc import Mapping

from rich.console import Console

from sae_transcoder import config
from sae_transcoder.distributed import Ranks
from sae_transcoder.language_model.weights_dtype import resolve_dtype
from sae_transcoder.preflight.header import facts, print_header
from sae_transcoder.preflight.plan import Plan
from sae_transcoder.process.broken_device import raise_if_broken
from sae_transcoder.process.free_memory import clear_traceback_locals
from sae_transcoder.process.memory_errors import is_out_of_memory
from sae_transcoder.run_store import eval_file
from sae_transcoder.run_store.checked_files import DamagedFile
from sae_transcoder.run_store.run_log import log_to_run
from sae_transcoder.training.failure import portable, tell
from sae_transcoder.training.managed_run import ManagedRun, RunClaimed
from sae_transcoder.training.outcome import Outcome, TrainedRun

log = logging.getLogger(__name__)


def claim(plans: Mapping[int, Plan], ranks: Ranks) -> tuple[dict[int, ManagedRun], dict[int, Exception]]:
    """Makes each run, which locks its directory. Returns the runs, and the error of each that failed on any rank."""

    def made(plan: Plan) -> ManagedRun | Exception:
        try:
            return ManagedRun(plan, resolve_dtype(plan.cfg, plan.device), ranks)
        except Exception as error:
            raise_if_broken(error)
            return error

    # Rank 0 locks the directories before the others read what is there.
    attempts = ranks.first_then_others(lambda: {i: made(plan) for i, plan in plans.items()})
    local_errors = {i: error for i, error in attempts.items() if isinstance(error, Exception)}
    errors: dict[int, Exception] = {}
    for of_rank in ranks.all_gather({i: portable(error) for i, error in local_errors.items()} if ranks.size > 1 else {}):
        errors = of_rank | errors
    errors |= local_errors
    runs = {i: run for i, run in attempts.items() if isinstance(run, ManagedRun)}
    for i in [i for i in runs if i in errors]:
        runs.pop(i).leave()
    return runs, errors


def open_runs(runs: Mapping[int, ManagedRun], ranks: Ranks) -> dict[int, Exception]:
    """Opens each run; returns the error of each that could not be opened. With several ranks the first error is raised."""
    errors: dict[int, Exception] = {}
    for i, run in runs.items():
        try:
            run.open()
        except Exception as error:
            if ranks.size > 1:
                raise
            errors[i] = error
    return errors


def outcomes_of(errors: Mapping[int, Exception], plans: Mapping[int, Plan], console: Console, ranks: Ranks) -> dict[int, Outcome]:
    """The outcomes of runs that could not begin, shown on the terminal. A run has none where memory did not suffice for the pack: it begins
    in a smaller one."""
    outcomes: dict[int, Outcome] = {}
    for i, error in errors.items():
        cfg = plans[i].cfg
        directory = config.run_dir(cfg)
        if isinstance(error, RunClaimed):
            try:
                evaluation = eval_file.read(directory) if error.done else None
                outcomes[i] = TrainedRun(cfg, directory, evaluation) if evaluation else error
            except DamagedFile as fault:
                outcomes[i] = fault
            continue
        if not is_out_of_memory(error) or len(plans) == 1 or ranks.size > 1:
            outcomes[i] = error
            tell(directory, error, len(plans), console)
        clear_traceback_locals(error)
    return outcomes


def announce(runs: list[ManagedRun], console: Console) -> None:
    """Shows what will be trained, and what each run says of its start: where it continues, a warning, where its tracker shows it."""
    if runs:
        print_header([run.plan for run in runs], console)
    notes: dict[str, list[str]] = {}
    for run in runs:
        with log_to_run(run.directory):
            log.info("%s", facts(run.plan))
        continues = f"continues after step {run.trainer.step:,}" if run.trainer.batch else None
        tracker = run.logbook.where if run.logbook else None
        for note in filter(None, (continues, run.warning, tracker)):
            notes.setdefault(note, []).append(run.directory.name)
    for note, names in notes.items():
        concerned = "" if len(names) == len(runs) else f"{', '.join(names)}: "
        console.print(concerned + note, markup=False, soft_wrap=True)
