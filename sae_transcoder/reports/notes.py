"""What is said below the table of runs: why numbers are missing, and which runs are worse than nothing."""

import math
from collections.abc import Iterator, Sequence

from sae_transcoder.reports import formats
from sae_transcoder.run_store import run_records
from sae_transcoder.run_store.run_records import Record
from sae_transcoder.run_store.scores import reasons

MOST = 5  # notes of a kind, and names in one


def notes(records: Sequence[Record]) -> list[str]:
    """The lines below the table of these runs; none where all numbers speak for themselves."""
    return [
        *shortened(list(missing_scores(records))),
        *unmeasured_scores(records),
        *too_short(records),
        *worse_than_nothing(records),
    ]


def missing_scores(records: Sequence[Record]) -> Iterator[str]:
    """A line for each reason why coders have no CE score."""
    runs: dict[tuple[str, str], dict[str, None]] = {}
    for record in records:
        for coder in record.evaluation.coders if record.evaluation else ():
            if reason := reasons(coder.metrics).get("ce_loss_score"):
                runs.setdefault((coder.hookpoint, reason), {})[record.name] = None
    for (hookpoint, reason), names in runs.items():
        where = "" if len(names) == len(records) else f" in {listed(list(names))}"
        yield f"{hookpoint} has no CE score{where}: {reason}"


def unmeasured_scores(records: Sequence[Record]) -> list[str]:
    """A line for the runs whose settings leave the CE score out."""
    found = list(filter(leaves_scores_out, records))
    return [f"no CE score{so_many(found, records)}: eval_end_to_end=false leaves it out"] if found else []


def leaves_scores_out(record: Record) -> bool:
    """Whether a run was evaluated without its language model, as its settings ask."""
    if not record.evaluation or any("ce_loss_score" in coder.metrics for coder in record.evaluation.coders):
        return False
    return {**record.config, **record.evaluation.config}.get("eval_end_to_end") is False


def too_short(records: Sequence[Record]) -> list[str]:
    """A line for the runs that have trained too briefly for a latent to count as dead."""
    found = [record for record in records if math.isnan(run_records.mean_of(record.last, "dead_fraction") or 0.0)]
    return [f"no latent can be dead{so_many(found, records)}: trained on dead_feature_threshold tokens or fewer"] if found else []


def worse_than_nothing(records: Sequence[Record]) -> list[str]:
    """A line that names the runs with a coder whose held-out FVU is above 1."""
    found = [f"{record.name} ({formats.fvu(fvu)})" for record in records if (fvu := highest_fvu(record)) is not None and fvu > 1]
    return [f"held-out FVU above 1, which is worse than the mean output at every token: {listed(found)}"] if found else []


def highest_fvu(record: Record) -> float | None:
    """The highest held-out FVU of a run's coders; None without one."""
    fvus = [coder.metrics["fvu"] for coder in record.evaluation.coders if "fvu" in coder.metrics] if record.evaluation else []
    return max(fvus, default=None)


def so_many(found: Sequence[Record], records: Sequence[Record]) -> str:
    """In how many of the runs it is, where it is not in all: the dashes in their rows show in which."""
    return "" if len(found) == len(records) else f" in {len(found):,} of {len(records):,} runs"


def listed(names: Sequence[str]) -> str:
    """The names; of many, the first and the number of the others."""
    more = f" and {len(names) - MOST:,} more" if len(names) > MOST else ""
    return ", ".join(names[:MOST]) + more


def shortened(lines: Sequence[str]) -> list[str]:
    """The lines; of many, the first and the number of the others."""
    return [
        *lines[:MOST],
        *([f"{len(lines) - MOST:,} more coders have no CE score; their files say why"] if len(lines) > MOST else []),
    ]
