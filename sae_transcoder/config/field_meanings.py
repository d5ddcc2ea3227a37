"""The meaning of each field: its docstring, as it stands in config/fields."""

import ast
import functools
import inspect
from itertools import pairwise

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
