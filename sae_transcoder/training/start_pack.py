"""How the runs of a pack begin: each takes its directory, goes on from its state, and what will be trained is shown."""

import logging
from collections.abc import Mapping

from rich.console import Console

from sae_transcoder import config
from sae_transcoder.distributed import Ranks
from sae_transcoder.language_model import loading
from sae_transcoder.preflight.plan import Plan
from sae_transcoder.process.broken_device import end_if_broken
from sae_transcoder.process.memory_errors import is_out_of_memory
from sae_transcoder.run_store import eval_file
from sae_transcoder.run_store.run_log import log_to_run
from sae_transcoder.training import display
from sae_transcoder.training.failure import portable, tell
from sae_transcoder.training.managed_run import ManagedRun, RunClaimed
from sae_transcoder.training.out_of_memory import forget
from sae_transcoder.training.outcome import Outcome, Result

log = logging.getLogger(__name__)


def begin(
    plans: Mapping[int, Plan], members: dict[int, ManagedRun], outcomes: dict[int, Outcome], console: Console, ours: Ranks
) -> None:
    """Adds each run, opened, to `members`, and shows what will be trained. Those for which memory does not suffice are left out, those
    that cannot go on from their state, or that another process has taken, have an outcome at once."""

    def made(plan: Plan) -> ManagedRun | Exception:
        try:
            return ManagedRun(plan, loading.resolve_dtype(plan.cfg, plan.device), ours)
        except Exception as error:
            end_if_broken(error)
            return error

    # The first rank takes the directory before the others read what lies there.
    found = ours.first_then_others(lambda: {i: made(plan) for i, plan in plans.items()})
    refused: dict[int, Exception] = {}
    for own in ours.gather({i: portable(f) for i, f in found.items() if isinstance(f, Exception)} if ours.size > 1 else {}):
        refused = own | refused
    refused |= {i: f for i, f in found.items() if isinstance(f, Exception)}
    for i, member in found.items():
        if isinstance(member, ManagedRun) and i in refused:
            member.leave()
        elif isinstance(member, ManagedRun):
            try:
                member.open()
                members[i] = member
            except Exception as fault:
                if ours.size > 1:
                    raise
                refused[i] = fault
    for i, error in refused.items():
        directory = config.run_dir(plans[i].cfg)
        if isinstance(error, RunClaimed):
            evaluation = eval_file.read(directory) if error.done else None
            outcomes[i] = Result(directory, evaluation) if evaluation else error
            continue
        if not is_out_of_memory(error) or len(plans) == 1 or ours.size > 1:
            outcomes[i] = error
            tell(directory, error, len(plans), console)
        forget(error)
    if members:
        display.header([m.plan for m in members.values()], console)
    notes: dict[str, list[str]] = {}
    for member in members.values():
        with log_to_run(member.directory):
            log.info("%s", display.facts(member.plan))
        goes_on = f"continues after step {member.run.step:,}" if member.run.batch else None
        where = member.logbook.where if member.logbook else None
        for note in filter(None, (goes_on, member.warning, where)):
            notes.setdefault(note, []).append(member.directory.name)
    for note, names in notes.items():
        concerns = "" if len(names) == len(members) else f"{', '.join(names)}: "
        console.print(concerns + note, markup=False, soft_wrap=True)
