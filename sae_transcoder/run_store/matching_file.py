"""matching.json of a run: how many latents its coders have in common with other coders, computed once.

    format   this project's version of the file
    pairs    an entry for each pair of coders: Match; a pair lies in the directory of the first of its coders

An entry counts as long as both files of weights have the size and time of change that it names. Nothing here imports torch.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sae_transcoder.process.atomic_files import replace_text
from sae_transcoder.run_store.checked_files import damaged, is_integer, is_number, read_object

NAME = "matching.json"
FORMAT = 1
FIX = "remove it: sae-report --matching computes it again"


@dataclass(frozen=True)
class Match:
    """Two coders, latent by latent. `coder`: of this run; `other_run`: the other's directory as seen from this one; `weights`, `other_weights`:
    size in bytes and time of change in ns of each one's file. Of `latents`, which share is in common (`shared`), for which share the matchings of
    encoder and decoder rows name the same counterpart (`agree`); the matched rows' mean cosines."""

    coder: str
    other_run: str
    other_coder: str
    weights: list[int]
    other_weights: list[int]
    latents: int
    shared: float
    agree: float
    encoder_cosine: float
    decoder_cosine: float


def read(directory: Path) -> list[Match]:
    """The pairs in a run's matching.json; none where there is no file. Raises DamagedFile."""
    path = directory / NAME
    if (values := read_object(path, FIX)) is None:
        return []
    try:
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']}, this version writes {FORMAT}")
        pairs = [Match(**entry) for entry in values["pairs"]]
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"not of this version: {error!r}", FIX) from error
    if not all(map(is_valid, pairs)):
        raise damaged(path, "holds something else than pairs of coders", FIX)
    return pairs


def is_valid(match: Match) -> bool:
    """Whether each value has its type."""
    stamps = (match.weights, match.other_weights)
    return (
        all(isinstance(text, str) for text in (match.coder, match.other_run, match.other_coder))
        and all(isinstance(stamp, list) and all(map(is_integer, stamp)) for stamp in stamps)
        and is_integer(match.latents)
        and all(map(is_number, (match.shared, match.agree, match.encoder_cosine, match.decoder_cosine)))
    )


def write(directory: Path, pairs: Sequence[Match]) -> None:
    """Replaces matching.json. Raises OSError where the directory cannot be written to."""
    replace_text(directory / NAME, json.dumps({"format": FORMAT, "pairs": [asdict(match) for match in pairs]}, indent=1) + "\n")
