"""What is said below the table of runs: why scores are missing, and which runs are worse than nothing."""

from collections.abc import Iterator, Sequence

from sae_transcoder.reports import formats
from sae_transcoder.run_store.run_records import Record
from sae_transcoder.run_store.scores import reasons

MOST = 5  # notes of a kind, and names in one


def notes(records: Sequence[Record]) -> list[str]:
    """The lines below the table of these runs; none where all numbers speak for themselves."""
    return [*shortened(list(missing_scores(records))), *worse_than_nothing(records)]


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


def worse_than_nothing(records: Sequence[Record]) -> list[str]:
    """A line that names the runs with a coder whose held-out FVU is above 1."""
    found = [f"{record.name} ({formats.fvu(fvu)})" for record in records if (fvu := highest_fvu(record)) is not None and fvu > 1]
    return [f"held-out FVU above 1, which is worse than the mean output at every token: {listed(found)}"] if found else []


def highest_fvu(record: Record) -> float | None:
    """The highest held-out FVU of a run's coders; None without one."""
    fvus = [coder.metrics["fvu"] for coder in record.evaluation.coders if "fvu" in coder.metrics] if record.evaluation else []
    return max(fvus, default=None)


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
