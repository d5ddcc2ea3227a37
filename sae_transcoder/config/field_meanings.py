"""The meaning of each field: its docstring, as it stands in config/fields; and how messages and tables show a value."""

import ast
import functools
import inspect
import json
from itertools import pairwise
from typing import Any

from omegaconf import MISSING

from sae_transcoder.config.fields import FIELD_GROUPS


@functools.cache
def meanings() -> dict[type, dict[str, str]]:
    """{group's dataclass: {field: its docstring in one line}}, in the order of the config."""
    docstrings: dict[type, dict[str, str]] = {}
    for group in FIELD_GROUPS:
        (definition,) = ast.parse(inspect.getsource(group)).body
        assert isinstance(definition, ast.ClassDef)
        docstrings[group] = {
            field.target.id: " ".join(str(ast.literal_eval(text.value)).split())
            for field, text in pairwise(definition.body)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr)
        }
    return docstrings


def heading(group: type) -> str:
    """What the fields of a group are about, with the group's name where it has choices."""
    return (group.__doc__ or "").split("; ")[0].strip().removesuffix(".")


def shown(value: Any) -> str:
    """A field's value in YAML's words."""
    if value == MISSING:
        return "required"
    return value if isinstance(value, str) else json.dumps(value)
