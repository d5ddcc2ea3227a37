"""matching.json of each run, read and added to: the latents that pairs of coders have in common."""

import os
from pathlib import Path

from sae_transcoder.coder.names import coder_dir
from sae_transcoder.reports import matched_latents
from sae_transcoder.reports.seed_groups import CoderPlace, SeedCoder
from sae_transcoder.run_store import matching_file, run_records
from sae_transcoder.run_store.checked_files import DamagedFile
from sae_transcoder.run_store.matching_file import Match
from sae_transcoder.run_store.run_records import Complain

Pair = tuple[SeedCoder, SeedCoder]


class KeptMatches:
    """The matches of the runs' matching.json, and new ones, which are written there at once."""

    def __init__(self, warn: Complain):
        self.warn = warn
        self.of_run: dict[Path, list[Match]] = {}
        self.stamps: dict[CoderPlace, list[int] | None] = {}
        self.rows: dict[CoderPlace, matched_latents.Rows] = {}  # of the last pair

    def usable(self, pair: Pair) -> bool:
        """Whether both coders' weights are there."""
        return all(self.stamp(coder) is not None for coder in pair)

    def stamp(self, coder: SeedCoder) -> list[int] | None:
        """What tells a coder's weights from others; None, after a complaint, where there are none or they cannot be read."""
        if coder.place not in self.stamps:
            self.stamps[coder.place] = run_records.read_or_none(matched_latents.stamp, folder_of(coder), self.warn)
        return self.stamps[coder.place]

    def find(self, pair: Pair) -> Match | None:
        """The match of a pair, if it is of the weights that are there now."""
        one, other = pair
        key = (one.coder.coder, other_run(pair), other.coder.coder, self.stamp(one), self.stamp(other))
        kept = self.of(one.record.directory)
        return next((m for m in kept if (m.coder, m.other_run, m.other_coder, m.weights, m.other_weights) == key), None)

    def of(self, directory: Path) -> list[Match]:
        """All matches of a run."""
        if directory not in self.of_run:
            self.of_run[directory] = run_records.read_or_none(matching_file.read, directory, self.warn) or []
        return self.of_run[directory]

    def compute(self, pair: Pair) -> None:
        """Matches a pair and keeps the result. A coder that cannot be read is left out from here on, after a complaint."""
        stamps = [self.stamp(coder) for coder in pair]
        if None in stamps or not (rows := self.read(pair)):
            return
        one, other = pair
        found = matched_latents.match(*rows)
        match = Match(
            one.coder.coder, other_run(pair), other.coder.coder, stamps[0] or [], stamps[1] or [], one.coder.num_latents,
            float(found.shared.mean()), float(found.agree.mean()), float(found.encoder_cosine.mean()), float(found.decoder_cosine.mean()),
        )  # fmt: skip
        directory = one.record.directory
        places = (match.coder, match.other_run, match.other_coder)
        self.of_run[directory] = [m for m in self.of(directory) if (m.coder, m.other_run, m.other_coder) != places] + [match]
        try:
            matching_file.write(directory, self.of_run[directory])
        except OSError as error:
            self.warn(f"{directory / matching_file.NAME}: cannot be written ({error.strerror}); it is computed again next time")

    def read(self, pair: Pair) -> list[matched_latents.Rows] | None:
        """The rows of both coders; None, after a complaint, where one's cannot be read."""
        self.rows = {coder.place: self.rows[coder.place] for coder in pair if coder.place in self.rows}
        for coder in pair:
            if coder.place not in self.rows:
                try:
                    rows = matched_latents.read_rows(folder_of(coder), coder.coder.num_latents, coder.coder.d)
                except DamagedFile as error:
                    self.warn(f"{error}; left out")
                    self.stamps[coder.place] = None
                    return None
                self.rows[coder.place] = rows
        return [self.rows[coder.place] for coder in pair]


def folder_of(coder: SeedCoder) -> Path:
    """Where a coder's files lie."""
    return coder.record.directory / "coders" / coder_dir(coder.coder.coder)


def other_run(pair: Pair) -> str:
    """The second coder's run as seen from the first one's."""
    return os.path.relpath(os.path.realpath(pair[1].record.directory), os.path.realpath(pair[0].record.directory))
