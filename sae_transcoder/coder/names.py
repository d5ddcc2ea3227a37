"""The names of a run's coders: their hookpoint, `layers.2`, or with several seeds `layers.2/seed7`."""

from collections.abc import Iterable, Sequence
from pathlib import Path


def coder_names(hookpoint: str, seeds: Sequence[int]) -> list[str]:
    """The names of a hookpoint's coders, one for each seed."""
    return [f"{hookpoint}/seed{seed}" for seed in seeds] if len(seeds) > 1 else [hookpoint]


def hookpoint_of(name: str) -> str:
    """The hookpoint of the coder of that name."""
    return name.partition("/")[0]


def seed_of(name: str) -> str:
    """`seed7`, or an empty string where the run has one seed."""
    return name.partition("/")[2]


def coders_by_seed(names: Iterable[str]) -> list[dict[str, str]]:
    """{hookpoint: coder} for each seed."""
    by_seed: dict[str, dict[str, str]] = {}
    for name in names:
        by_seed.setdefault(seed_of(name), {})[hookpoint_of(name)] = name
    return list(by_seed.values())


def coder_dir(name: str) -> Path:
    """The folder of a coder below coders/: its hookpoint, or seed<N>/hookpoint."""
    return Path(seed_of(name)) / hookpoint_of(name)


def coder_name(folder: Path) -> str:
    """The name of the coder in that folder; the inverse of `coder_dir`."""
    *seeds, hookpoint = folder.parts
    return "/".join([hookpoint, *seeds])
