"""Hydra composes a command's config twice: first for `hydra.mode` alone, which a command or a file may set in place of -m. Where none does,
this leaves the first time out: a third of the time that a refused command takes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra._internal.hydra import Hydra

from sae_transcoder.config.presets import CONF


@contextmanager
def composed_once(overrides: Sequence[str], config_dirs: Sequence[Path]) -> Iterator[None]:
    """While it is open, Hydra looks for `hydra.mode` only where something may set it: an override of Hydra's own settings, a file of
    another folder, or one of conf/ that names a mode."""
    by_hydra = Hydra.get_mode

    def get_mode(*args: Any, **kwargs: Any) -> Any:
        """None: nothing sets it. Upstream: _run_hydra in hydra/_internal/utils.py asks, for commands that run and not for --cfg."""
        return by_hydra(*args, **kwargs) if may_set_mode(overrides, config_dirs) else None

    Hydra.get_mode = get_mode  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = by_hydra  # type: ignore[method-assign]


def may_set_mode(overrides: Sequence[str], config_dirs: Sequence[Path]) -> bool:
    """Whether `hydra.mode` may be set; where it is not known, True."""
    if config_dirs or any(override.lstrip("+~").startswith("hydra") for override in overrides):
        return True
    return any("mode:" in path.read_text() for path in CONF.rglob("*.yaml"))
