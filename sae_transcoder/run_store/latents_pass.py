"""pass.json: one pass of `sae-latents` over text, of which the tables of latent_files are the result. Nothing here imports torch or pyarrow."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sae_transcoder.config import ConfigError
from sae_transcoder.process.atomic_files import replace_text
from sae_transcoder.run_store.checked_files import damaged, read_object

FOLDER, PASS = "latents", "pass.json"
VERSION = 1  # of this file and the tables
FIX = "remove the folder, and sae-latents makes it again"


@dataclass(frozen=True)
class CoderInPass:
    """One coder of a pass. `writes`: whether its module writes into the residual stream."""

    name: str
    hookpoint: str
    seed: int | None
    d_in: int
    latents: int
    k: int
    activation: str
    transcoder: bool
    matryoshka_widths: list[int] | None
    writes: bool


@dataclass(frozen=True)
class LatentsPass:
    """One pass over text. `text`: "held out" or "training"; `sequences`, `positions`: what was read; `tokens`: {coder: how many positions count
    for it}; `together_tokens`: {coder: on how many of these `together` is counted}; `latents`: the numbers of the latents that were asked for,
    None for all; `top`: strongest contexts kept of each; `ranges`: equal ranges of activations; `histogram_edges`: in log2 of the
    activation, smaller and larger ones count in the outermost bins; `fingerprint`: equal for passes that give the same."""

    model_name: str
    dataset_name: str
    text: str
    sequences: int
    sequence_length: int
    positions: int
    tokens: dict[str, int]
    together_tokens: dict[str, int]
    latents: list[int] | None
    top: int
    ranges: int
    histogram_edges: list[float]
    begin: list[int]
    settings: dict[str, Any]
    coders: list[CoderInPass]
    fingerprint: str = ""
    version: int = VERSION

    def coder(self, name: str) -> CoderInPass:
        """The coder of that name. Raises ConfigError where there is none."""
        for coder in self.coders:
            if coder.name == name:
                return coder
        raise ConfigError(f"coder={name}: not among {', '.join(coder.name for coder in self.coders)}")


def folder_of(root: Path, run_dir: Path) -> Path:
    """Where the latents of the coders in the folder `root` of a run are kept."""
    return run_dir / FOLDER / root.relative_to(run_dir)


def write_pass(folder: Path, latents_pass: LatentsPass) -> None:
    """Replaces pass.json, which is written last: a folder without one is not complete."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / PASS, json.dumps(asdict(latents_pass), indent=1) + "\n")


def read_pass(folder: Path) -> LatentsPass | None:
    """The pass whose files lie in the folder; None where there is none. Raises DamagedFile."""
    path = folder / PASS
    if (values := read_object(path, FIX)) is None:
        return None
    try:
        if values["version"] != VERSION:
            raise ValueError(f"version {values['version']}, this program reads {VERSION}")
        return LatentsPass(**values | {"coders": [CoderInPass(**coder) for coder in values["coders"]]})
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"not written by this version: {error}", FIX) from error
