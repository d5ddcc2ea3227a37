"""data.json: what a run reads, as it was resolved when the run began. Nothing here imports torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sae_transcoder.process.atomic_files import replace_text
from sae_transcoder.run_store.checked_files import damaged, read_object

NAME = "data.json"


@dataclass(frozen=True)
class DataOrigin:
    """Where a run's sequences come from, and which special tokens stand around their text."""

    begin: tuple[int, ...] = ()  # ids at the start of every sequence
    separator: tuple[int, ...] = ()  # ids after every document; of ids that were stored already they are not known
    heldout_documents: int | None = None  # how many documents the held-out sequences come from; None: not known
    heldout_shares: Mapping[str, float] = field(default_factory=dict)  # {part of a mixture: its share of the held-out tokens}
    shares: Mapping[str, float] = field(default_factory=dict)  # the same of the tokens to train on
    copies: int = 0  # documents to train on that are held out too, to the letter
    # Numbers that tell the documents held out from others; not in eval.json.
    heldout_identities: tuple[int, ...] = field(default=(), compare=False)
    divided: bool = False  # whether held-out sequences come from documents that are trained on as well, since there are too few


UNKNOWN = DataOrigin()


def write(directory: Path, origin: DataOrigin) -> None:
    """Replaces data.json in a run's directory."""
    replace_text(directory / NAME, json.dumps(asdict(origin), indent=2) + "\n")


def read(directory: Path) -> DataOrigin | None:
    """The run's data.json; None where there is none. Raises DamagedFile."""
    path, fix = directory / NAME, "remove it, and the command that began the run writes it again"
    if (values := read_object(path, fix)) is None:
        return None
    try:
        return from_values(values)
    except (ValueError, TypeError) as error:
        raise damaged(path, f"not written by this version: {error}", fix) from error


def from_values(values: Any) -> DataOrigin:
    """The origin that `asdict` made these values of. Raises ValueError or TypeError for others."""
    origin = DataOrigin(**values)
    return replace(
        origin,
        begin=tuple(map(int, origin.begin)),
        separator=tuple(map(int, origin.separator)),
        heldout_identities=tuple(map(int, origin.heldout_identities)),
    )
