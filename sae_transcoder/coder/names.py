"""What a run calls its coders: by their hookpoint, `layers.2`, or with several seeds `layers.2/seed7`."""

from collections.abc import Iterable, Sequence
from pathlib import Path


def names(hookpoint: str, seeds: Sequence[int]) -> list[str]:
    """The names of a hookpoint's coders, one for each seed."""
    return [f"{hookpoint}/seed{seed}" for seed in seeds] if len(seeds) > 1 else [hookpoint]


def hookpoint(name: str) -> str:
    """Where a coder of that name belongs."""
    return name.partition("/")[0]


def seed(name: str) -> str:
    """`seed7`, or nothing where there is only one."""
    return name.partition("/")[2]


def by_seed(names: Iterable[str]) -> list[dict[str, str]]:
    """{hookpoint: coder} for each seed."""
    seeds: dict[str, dict[str, str]] = {}
    for name in names:
        seeds.setdefault(seed(name), {})[hookpoint(name)] = name
    return list(seeds.values())


def folder(name: str) -> Path:
    """Where a coder lies below coders/: its hookpoint, or seed<N>/hookpoint."""
    return Path(seed(name)) / hookpoint(name)


def name_of(folder: Path) -> str:
    """The name of the coder that lies there; the inverse of `folder`."""
    *seeds, point = folder.parts
    return "/".join([point, *seeds])
