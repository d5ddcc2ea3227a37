"""The latents that coders have in common, pair by pair: which pairs, what is kept of them on disk, what they need."""

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from sae_transcoder.process.host_memory import available_bytes
from sae_transcoder.reports import matched_latents
from sae_transcoder.reports.errors import ReportError
from sae_transcoder.reports.kept_matches import KeptMatches, Pair
from sae_transcoder.reports.seed_groups import CoderPlace, SeedCoder, SeedGroup, Spread, seed_groups, spread
from sae_transcoder.run_store import observed_status
from sae_transcoder.run_store.matching_file import Match
from sae_transcoder.run_store.run_records import Complain, Record

LONG = 10.0  # seconds of computation from which on it is announced


@dataclass(frozen=True)
class CommonLatents:
    """How many latents two coders have in common."""

    one: SeedCoder
    other: SeedCoder
    match: Match


@dataclass(frozen=True)
class Matching:
    """The pairs of coders that were matched. `shows_pairs`: whether they are shown one by one, not only as means over seeds."""

    pairs: Sequence[CommonLatents] = ()
    shows_pairs: bool = False

    @cached_property
    def shares(self) -> Mapping[tuple[CoderPlace, CoderPlace], float]:
        """{two coders, in either order: the share of latents that they have in common}"""
        both_ways = ((pair, order) for pair in self.pairs for order in (1, -1))
        return {(pair.one.place, pair.other.place)[::order]: pair.match.shared for pair, order in both_ways}  # type: ignore[misc]

    def of_group(self, group: SeedGroup) -> Spread | None:
        """The share over the pairs of a group's seeds; None where none was matched."""
        shares = self.shares
        places = [member.place for member in group.members]
        return spread([shares[pair] for pair in itertools.combinations(places, 2) if pair in shares] or [None])

    def of_coders(self, groups: Iterable[SeedGroup]) -> dict[CoderPlace, float]:
        """{coder: the share of its latents that another seed's coder has too, the mean over the other seeds that were matched}"""
        shares, found = self.shares, {}
        for group in groups:
            places = [member.place for member in group.members]
            for place in places:
                if known := [shares[place, other] for other in places if (place, other) in shares]:
                    found[place] = sum(known) / len(known)
        return found


NOT_MATCHED = Matching()


def seed_pairs(groups: Iterable[SeedGroup]) -> list[Pair]:
    """All pairs of coders that differ in their seed alone."""
    return [pair for group in groups for pair in itertools.combinations(group.members, 2)]


def equal_shape_pairs(records: Iterable[Record]) -> list[Pair]:
    """All pairs of evaluated coders of the same model, hookpoint and model_type, and of as many latents of one width."""
    alike: dict[tuple[object, ...], list[SeedCoder]] = {}
    for record in records:
        for coder in record.evaluation.coders if record.evaluation and record.config else ():
            kind = (record.config.get("model_name"), record.config.get("model_type"), coder.hookpoint, coder.d, coder.num_latents)
            alike.setdefault(kind, []).append(SeedCoder(record, coder))
    return [pair for coders in alike.values() for pair in itertools.combinations(coders, 2)]


def match_runs(records: Sequence[Record], which: str, warn: Complain, announce: Callable[[str], None]) -> Matching:
    """Matches the coders of the runs: which: "seeds", those that differ in their seed alone, or "all", those of equal shapes.

    Pairs that are kept in matching.json are not computed again. warn is called with the faults of files, whose coders are left out; announce
    with what takes long. Raises ReportError where there is no pair, and where the machine's memory does not suffice.
    """
    pairs = seed_pairs(seed_groups(records)) if which == "seeds" else equal_shape_pairs(records)
    if not pairs:
        raise ReportError(
            "--matching: no two evaluated coders differ in their seed alone; train with init_seeds=[0,1], or match all of equal shape: --matching=all"
            if which == "seeds"
            else "--matching=all: no two evaluated coders are of the same model, hookpoint and model_type and of equal shape; name more runs"
        )
    pairs = list(map(in_order, pairs))
    kept = KeptMatches(warn)
    missing = [pair for pair in pairs if kept.usable(pair) and kept.find(pair) is None]
    refuse_too_large(missing)
    seconds = sum(matched_latents.seconds_needed(one.coder.num_latents) for one, _ in missing)
    if seconds > LONG:
        needed = max(matched_latents.bytes_needed(one.coder.num_latents) for one, _ in missing) / 1e9
        took = observed_status.duration(seconds)
        announce(f"matching the latents of {len(missing):,} pairs of coders: about {took}, {needed:.1f} GB")
    for number, pair in enumerate(missing, 1):
        kept.compute(pair)
        if seconds > LONG:
            announce(f"{number:,} of {len(missing):,} pairs")
    found = [CommonLatents(*pair, match) for pair in pairs if (match := kept.find(pair))]
    return Matching(found, shows_pairs=which == "all")


def in_order(pair: Pair) -> Pair:
    """The pair in the order in which it is kept, which does not depend on that of the runs in a table."""
    one, other = sorted(pair, key=lambda coder: (os.path.realpath(coder.record.directory), coder.coder.coder))
    return one, other


def refuse_too_large(pairs: Iterable[Pair]) -> None:
    """Raises ReportError where the matrix of a pair is larger than the memory that is free."""
    largest = max((one.coder.num_latents for one, _ in pairs), default=0)
    needed, free = matched_latents.bytes_needed(largest), available_bytes()
    if needed > free:
        raise ReportError(
            f"--matching: coders of {largest:,} latents need {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} are free; "
            "leave them out by --where, or run it on a larger machine"
        )
