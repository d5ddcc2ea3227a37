"""Slips of a command line that are seen in its words alone: dashes before a field, and a value that the shell took apart."""

import re
import shlex
from collections.abc import Sequence

from hydra._internal.utils import get_args_parser

from sae_transcoder.config.fields import FIELDS, GROUPS
from sae_transcoder.config.type_checks import ANNOTATIONS, element_type
from sae_transcoder.config.unknown_names import name_hint, nearest_hint

NAMES = (*FIELDS, *(group for group in GROUPS if group not in FIELDS))
TEXTS = {name for name, annotation in ANNOTATIONS.items() if annotation in (str, str | None)}
"""The fields whose value is a text, which may hold spaces."""


def is_option(argument: str) -> bool:
    """Whether an argument is an option of Hydra's command line; its long ones may be abbreviated, unless that is the name of a field."""
    option = argument.partition("=")[0]
    if field_of(option) in NAMES:
        return False
    options = get_args_parser()._option_string_actions
    return option in options or (option.startswith("--") and any(name.startswith(option) for name in options))


def long_options() -> list[str]:
    """Hydra's options that are words; `--version` and `--info` among them are this program's own."""
    return [option for option in get_args_parser()._option_string_actions if option.startswith("--")]


def field_of(option: str) -> str:
    """The name of the field that an option may mean."""
    return option.lstrip("-").replace("-", "_")


def take_option(argument: str, rest: list[str]) -> str:
    """The fault of an argument with dashes that is no option. Takes its value, or a list's, out of `rest`, the arguments that follow."""
    option, _, value = argument.partition("=")
    name, written = field_of(option), argument
    is_list = element_type(ANNOTATIONS.get(name)) is not None
    values = [value] if value else []
    while rest and is_bare(rest[0]) and rest[0] not in NAMES and (is_list or not values):
        values.append(rest.pop(0))
        written = f"{written} {values[-1]}"
    value = f"[{','.join(values)}]" if is_list and values and not values[0].startswith("[") else " ".join(values)
    if name in NAMES:
        shown = value or ("true" if ANNOTATIONS.get(name) is bool else "VALUE")
        return f"{written}: fields are written without dashes; write {shlex.quote(f'{name}={shown}')}"
    if hint := name_hint(name, value, NAMES):
        return f"{written}: {hint}"
    return f"{written}: there is no such option; fields are written as NAME=VALUE; {nearest_hint(name, NAMES)}"


def take_rest(argument: str, rest: list[str]) -> str | None:
    """The fault of an override that the shell took apart at spaces; None where it is whole. Takes its other words out of `rest`."""
    if (count := num_of_words(argument, rest)) == 0:
        return None
    words = [argument, *(rest.pop(0) for _ in range(count))]
    name, _, value = " ".join(words).partition("=")
    if not set("'\"") & set(value):  # outside of quotes a list needs no spaces
        value = re.sub(r"\s*([,\[\]])\s*", r"\1", value)
    whole = f"{name.strip()}={value.strip()}" if value else "=".join(words)
    return f"{' '.join(words)}: a space ends an argument; write {shlex.quote(whole)}"


def num_of_words(argument: str, rest: Sequence[str]) -> int:
    """How many of the arguments that follow belong to this one."""
    name, sign, value = argument.partition("=")
    bare = next((i for i, word in enumerate(rest) if not is_bare(word)), len(rest))
    if not sign and name in NAMES and rest:  # k 16, k = 16, k =16
        if rest[0] == "=":
            return min(2, len(rest))
        return int(rest[0].startswith("=") or (bare > 0 and rest[0] not in NAMES))
    if not sign or bare == 0:
        return 0
    if not value:  # k= 16
        return int(rest[0] not in NAMES)
    if open_brackets(value) > 0:  # layers=[1, 3]
        return next((n for n in range(1, bare + 1) if open_brackets(" ".join([value, *rest[:n]])) == 0), 0)
    if value.endswith(",") or rest[0].startswith(","):  # k=16, 32
        count = 1
        while count < bare and (rest[count - 1].endswith(",") or rest[count].startswith(",")):
            count += 1
        return count
    named = next((i for i, word in enumerate(rest[:bare]) if word in NAMES), bare)
    return named if name in TEXTS or name == "dataset_name" else 0  # dataset_name=my file.txt


def is_bare(word: str) -> bool:
    """Whether an argument is neither an override nor an option."""
    return "=" not in word and not re.match(r"-{1,2}[A-Za-z]", word)


def open_brackets(text: str) -> int:
    """How many brackets a text opens and does not close, without what stands in quotes."""
    plain = re.sub(r"'[^']*'|\"[^\"]*\"", "", text)
    return sum(plain.count(sign) for sign in "[({") - sum(plain.count(sign) for sign in "])}")
