"""The metadata of a field: its bounds, whether it changes the result, and whether it is a path.

A field with `result=False` does not change what is trained. All others make up the run's signature; one with `added=True` only where it is not
at its default, so that runs of versions without it keep their names. A field with `path=True` may be a path, which config/paths.py expands
where it is used.
"""

from dataclasses import field
from enum import StrEnum
from typing import Any


def bounded(
    default: Any, at_least: float | None = None, at_most: float | None = None, *, result: bool = True, is_added: bool = False
) -> Any:
    """A field whose value, where it is not null, lies between two bounds (inclusive). A float `at_least` also asks for a finite value.
    is_added: earlier versions did not have it."""
    bounds = {name: bound for name, bound in (("at_least", at_least), ("at_most", at_most)) if bound is not None}
    return field(default=default, metadata={"result": result, "added": is_added, **bounds})


def no_result(default: Any, at_least: float | None = None, at_most: float | None = None, *, is_added: bool = False) -> Any:
    """A field that changes where or how a run is done, but not what it computes; is_added: earlier versions did not have it."""
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata={"result": False, "added": is_added})
    return bounded(default, at_least, at_most, result=False, is_added=is_added)


def text_or_list(default: Any, *, is_path: bool = False) -> Any:
    """A field that is a text or a list of texts, which OmegaConf has no type for; is_path: whether these are, or may be, paths."""
    kind = str | list[str] | None if default is None else str | list[str]
    return field(default=default, metadata={"result": True, "type": kind} | ({"path": True} if is_path else {}))


def number_or(words: type[StrEnum]) -> Any:
    """A field that is a number, one of these words, or null (the default), which OmegaConf has no type for."""
    return field(default=None, metadata={"result": True, "type": float | words | None})


def path(default: Any, *, result: bool = True) -> Any:
    """A field that is a path, or may be one."""
    return field(default=default, metadata={"result": result, "path": True})


def added(default: Any, at_least: float | None = None, at_most: float | None = None, *, kind: Any = None) -> Any:
    """A field that earlier versions did not have, and whose default is what they did. kind: its type, where OmegaConf has none for it."""
    made = bounded(default, at_least, at_most, is_added=True)
    return field(default=default, metadata=made.metadata | ({} if kind is None else {"type": kind}))
