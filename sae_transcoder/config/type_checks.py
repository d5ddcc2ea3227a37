"""Whether each field's value has the type that it is declared with, the elements of lists included.

OmegaConf converts what it composes, but takes a list within a list for anything. Everything else that looks at a config may count on the types.
"""

import types
import typing
from dataclasses import fields
from enum import StrEnum
from typing import Any

from omegaconf import MISSING

from sae_transcoder.config.fields import Config

NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
EXAMPLES = {int: "[1,2]", float: "[0.9,0.5]", str: "[a,b]"}


def type_faults(cfg: Config) -> list[str]:
    """One message for each field whose value is of another type."""
    return [
        f"{name}={value!r}: must be {wanted(annotation)}"
        for name, annotation in ANNOTATIONS.items()
        if (value := getattr(cfg, name)) != MISSING and not is_of_type(value, annotation)
    ]


ANNOTATIONS = typing.get_type_hints(Config) | {f.name: f.metadata["type"] for f in fields(Config) if "type" in f.metadata}
"""{field: the type of its values}."""
FLOATS = [name for name, annotation in ANNOTATIONS.items() if annotation is float or float in typing.get_args(annotation)]


def is_of_type(value: Any, annotation: Any) -> bool:
    """Whether a value is of a field's type; a whole number is a number, and true is not one."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return any(is_of_type(value, option) for option in typing.get_args(annotation))
    if typing.get_origin(annotation) is list:
        (element,) = typing.get_args(annotation)
        return isinstance(value, list) and all(is_of_type(each, element) for each in value)
    if annotation in (int, float):
        return isinstance(value, (int, float) if annotation is float else int) and not isinstance(value, bool)
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return isinstance(value, str) and value in set(annotation)
    return isinstance(value, annotation)


def element_type(annotation: Any) -> Any | None:
    """The type of the elements of a field whose values are lists; None for any other field."""
    options = (option for option in (annotation, *typing.get_args(annotation)) if typing.get_origin(option) is list)
    return next((typing.get_args(option)[0] for option in options), None)


def choices_of(annotation: Any) -> list[str]:
    """The words of a field that takes one of several; empty for any other field."""
    options = [option for option in (annotation, *typing.get_args(annotation)) if isinstance(option, type)]
    return [str(word) for option in options if issubclass(option, StrEnum) for word in option]


def wanted(annotation: Any) -> str:
    """A type in words."""
    options = [option for option in typing.get_args(annotation) or [annotation] if option is not types.NoneType]
    null = ", or null" if types.NoneType in typing.get_args(annotation) else ""
    if typing.get_origin(annotation) is list:
        options = [annotation]
    return ", or ".join(map(in_words, options)) + null


def in_words(option: Any) -> str:
    """A type without null, in words."""
    if typing.get_origin(option) is list:
        (element,) = typing.get_args(option)
        return f"a list, each of its elements {NAMES[element]}, such as {EXAMPLES[element]}"
    if option in NAMES:
        return NAMES[option]
    return f"one of {', '.join(option)}" if len(option) > 1 else f"the word {next(iter(option))}"
