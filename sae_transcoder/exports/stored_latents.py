"""The latents of exported coders, as `sae-latents` left them in latents/ of their run."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sae_transcoder.coder.stored_coders import run_dir_of
from sae_transcoder.config import ConfigError
from sae_transcoder.exports.source import Source
from sae_transcoder.run_store.latent_files import DescribedLatents, described
from sae_transcoder.run_store.latents_pass import LatentsPass, folder_of

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
    """The latents of one pass. `coders`: {coder: its files}; `texts`: of the model's tokens, by id."""

    about: LatentsPass
    coders: Mapping[str, DescribedLatents]
    texts: list[str]

    def of(self, coder: str) -> Iterator[list[Latent]]:
        """A coder's latents, ascending, some at a time. Raises DamagedFile."""
        files = self.coders[coder]
        rows = files.table().to_pylist()
        for start in range(0, len(rows), AT_A_TIME):
            some = rows[start : start + AT_A_TIME]
            contexts: dict[int, list[dict[str, Any]]] = {row["latent"]: [] for row in some}
            for context in files.contexts(list(contexts)).to_pylist():
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
    path = str(run_dir if source.path.name == "coders" else source.path)
    folder = folder_of(source.path, run_dir)
    coders = described(folder, path)
    if missing := [name for name in source.coders if name not in coders]:
        raise ConfigError(f"{folder}: lacks {', '.join(missing)}; remove the folder, and run sae-latents {path} again")
    files = next(iter(coders.values()))
    if files.about.latents is not None:
        log.warning("%s: holds %d latents of each coder, and no others are written", folder, len(files.about.latents))
    return StoredLatents(files.about, coders, files.texts)
