"""The latents of exported coders, as `sae-latents` left them in latents/ of their run."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_transcoder.coder.names import coder_dir
from sae_transcoder.coder.stored_coders import run_dir_of
from sae_transcoder.config import ConfigError
from sae_transcoder.exports.source import Source
from sae_transcoder.run_store import latent_files
from sae_transcoder.run_store.latent_files import LatentsPass

log = logging.getLogger(__name__)

AT_A_TIME = 1024  # latents whose contexts are in memory


@dataclass(frozen=True)
class Latent:
    """One latent: its row of latent_files.LATENTS, and its rows of CONTEXTS, the strongest first."""

    row: dict[str, Any]
    contexts: list[dict[str, Any]]

    @property
    def number(self) -> int:
        """Which latent of its coder it is."""
        return self.row["latent"]


@dataclass(frozen=True)
class StoredLatents:
    """The files of one pass. `folder`: where they lie; `texts`: of the model's tokens, by id."""

    folder: Path
    latents_pass: LatentsPass
    texts: list[str]

    def of(self, coder: str) -> Iterator[list[Latent]]:
        """A coder's latents, ascending, some at a time. Raises DamagedFile."""
        own_dir = self.folder / coder_dir(coder)
        rows = latent_files.read_table(own_dir / latent_files.LATENTS_FILE).to_pylist()
        for start in range(0, len(rows), AT_A_TIME):
            some = rows[start : start + AT_A_TIME]
            contexts: dict[int, list[dict[str, Any]]] = {row["latent"]: [] for row in some}
            for context in latent_files.read_table(own_dir / latent_files.CONTEXTS_FILE, list(contexts)).to_pylist():
                contexts[context["latent"]].append(context)
            yield [Latent(row, contexts[row["latent"]]) for row in some]

    def shown(self, tokens: list[int]) -> list[str]:
        """The texts of tokens, with signs for what ends a line or is no blank but looks like one."""
        return [self.texts[token].replace("\n", "⏎").replace("\t", "→").replace("\r", "↵") for token in tokens]


def read_latents(source: Source) -> StoredLatents:
    """The latents of the exported coders. Says it where they are not all.

    Raises ConfigError where `sae-latents` has not read them, or not all of the coders, and DamagedFile.
    """
    run_dir = run_dir_of(source.path)
    if run_dir is None:
        raise ConfigError(f"{source.path}: of no run, so there are no latents; give a run's directory, its best/ or a snapshot")
    folder = run_dir / latent_files.NAME / source.path.relative_to(run_dir)
    path = run_dir if source.path.name == "coders" else source.path
    latents_pass = latent_files.read_pass(folder)
    if latents_pass is None:
        raise ConfigError(f"{path}: there is no {folder.relative_to(run_dir)}/ in its run yet; run sae-latents {path} first")
    if missing := [name for name in source.coders if name not in {coder.name for coder in latents_pass.coders}]:
        raise ConfigError(f"{folder}: lacks {', '.join(missing)}; remove the folder, and run sae-latents {path} again")
    if latents_pass.latents is not None:
        log.warning("%s: holds %d latents of each coder, and no others are written", folder, len(latents_pass.latents))
    return StoredLatents(folder, latents_pass, latent_files.read_vocabulary(folder))
