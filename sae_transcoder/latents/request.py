"""What `sae-latents PATH ... [NAME=VALUE ...]` asks for. Nothing here imports torch."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_transcoder.coder.stored_coders import THRESHOLDS, WEIGHTS, coder_settings, num_latents
from sae_transcoder.config import Config, ConfigError, evaluation_settings, save_dir
from sae_transcoder.config.paths import local_path
from sae_transcoder.evaluation.request import StoredCoders, Tell, one_output, runs_in_all, split_paths, stored_coders
from sae_transcoder.preflight.run_directory import refuse_unwritable
from sae_transcoder.run_store import latents_pass

OWN = {
    "tokens": "of the text for training, how many are read; without it, what was held out is read",
    "latents": "numbers of the latents that are described, such as 0-99,200; all by default",
    "top": "strongest contexts that are kept of each latent; 20 by default",
}
"""{setting of this command alone: what it means}."""
MOST_TOP = 100


@dataclass(frozen=True)
class Wanted:
    """The command's own settings. `tokens`: of the training text, None: what is held out; `ranges`: of the numbers of latents, None: all;
    `top`: strongest contexts of each latent."""

    tokens: int | None = None
    ranges: tuple[range, ...] | None = None
    top: int = 20

    @property
    def latents(self) -> tuple[int, ...] | None:
        """The numbers of the latents, ascending; None: all."""
        return None if self.ranges is None else tuple(sorted({number for numbers in self.ranges for number in numbers}))


@dataclass(frozen=True)
class LatentsRequest:
    """Coders whose latents are to be shown. `folder`: where the result goes, see latent_files."""

    stored: StoredCoders
    wanted: Wanted
    folder: Path

    @property
    def cfg(self) -> Config:
        """The settings by which text is read."""
        return self.stored.cfg

    def is_done(self) -> bool:
        """Whether the folder holds the result. Raises DamagedFile."""
        done = latents_pass.read_pass(self.folder)
        return done is not None and done.fingerprint == self.fingerprint()

    def fingerprint(self) -> str:
        """A text that differs where the result would: by settings, coders, what is wanted, or the version of the files."""
        files = {
            name: [
                (path.stat().st_size, path.stat().st_mtime_ns) for file in (WEIGHTS, THRESHOLDS) if (path := folder / file).exists()
            ]
            for name, folder in self.stored.coder_dirs.items()
        }
        wanted = [self.wanted.tokens, self.wanted.latents, self.wanted.top]
        made_of: list[Any] = [latents_pass.VERSION, evaluation_settings(self.cfg), wanted, files]
        return hashlib.sha256(json.dumps(made_of, default=str).encode()).hexdigest()[:16]


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], Wanted, list[str]]:
    """The paths, the command's own settings, and the overrides. Raises ConfigError for values that are none."""
    paths, settings = split_paths(arguments)
    overrides: list[str] = []
    own: dict[str, str] = {}
    for argument in settings:
        name, _, value = argument.partition("=")
        if name not in OWN:
            overrides.append(argument)
        elif name in own:
            raise ConfigError(f"{name}={own[name]} {argument}: {name} stands there twice; leave one out")
        else:
            own[name] = value
    wanted = Wanted(
        number("tokens", own["tokens"], 2**63) if "tokens" in own else None,
        latent_ranges(own["latents"]) if "latents" in own else None,
        number("top", own["top"], MOST_TOP) if "top" in own else Wanted.top,
    )
    return paths, wanted, overrides


def number(name: str, text: str, most: int) -> int:
    """A number from 1 to `most`. Raises ConfigError for another text."""
    digits = text.replace("_", "")
    if not digits.isdecimal() or not 1 <= int(digits) <= most:
        raise ConfigError(f"{name}={text}: a number from 1 to {most:,}" if most < 2**63 else f"{name}={text}: a number from 1 on")
    return int(digits)


def latent_ranges(text: str) -> tuple[range, ...]:
    """The ranges that `0-99,200` names. They are spelled out once it is known that the coders have them: a number of too many digits must not
    fill the memory. Raises ConfigError for another text."""
    ranges = []
    for part in text.strip("[]").split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise ConfigError(f"latents={text}: numbers and ranges, such as 0-99,200")
        ranges.append(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(ranges)


def latents_requests(
    paths: Sequence[str], wanted: Wanted, overrides: Sequence[str], output: Path | None, tell: Tell
) -> list[LatentsRequest]:
    """What is asked for, for each run in the paths; a folder of runs stands for all of them. `tell` is called with what is left out.

    Raises ConfigError where there are no coders, and for settings that are wrong or not read.
    """
    requests: dict[Path, LatentsRequest] = {}  # by folder: a run may be named in two ways
    for path in one_output(runs_in_all(paths, tell), output):
        stored = stored_coders(path, overrides, OWN)
        faults = []
        for name, folder in stored.coder_dirs.items():
            count = num_latents(coder_settings(folder))
            if wanted.ranges is not None and (last := max(numbers[-1] for numbers in wanted.ranges)) >= count:
                faults.append(f"latents={last}: {name} of {path} has {count:,}, 0 to {count - 1}")
        if stored.run_dir is not None and not output:
            saved = [override for override in overrides if override.startswith("save_dir=")]
            faults += [
                f"{override}: the latents of a run are kept in its directory; for another place give --output" for override in saved
            ]
        if faults:
            raise ConfigError(*faults)
        folder = local_path(output, "--output") if output else folder_of(stored)
        refuse_unwritable("--output", folder)
        requests.setdefault(folder.resolve(), LatentsRequest(stored, wanted, folder))
    return list(requests.values())


def folder_of(stored: StoredCoders) -> Path:
    """Where the latents of these coders are kept: in latents/ of their run, else below save_dir/latents."""
    if stored.run_dir is not None and stored.root != stored.run_dir:
        return latents_pass.folder_of(stored.root, stored.run_dir)
    key = hashlib.sha256(str(stored.root.absolute()).encode()).hexdigest()[:8]
    return save_dir(stored.cfg) / latents_pass.FOLDER / f"{stored.root.name}-{key}"
