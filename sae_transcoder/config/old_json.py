"""Flat JSON files of the program that this one replaces: `json=FILE` on the command line stands for the overrides that they mean."""

import json
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from sae_transcoder.config import FIELDS, GROUPS, Config, ConfigError, ModelType, Tracker

RENAMED = {"wandb_project": "project", "wandb_entity": "entity", "wandb_log_frequency": "log_every"}
TRACKING = ("experiment_tracker", "log_to_wandb")  # which together are `tracker`
# Defaults of the old program that are faults: a file that spells one out gets ours.
FAULTY: dict[str, tuple[Any, str]] = {
    "device": ("cuda:1", "the second GPU, or none"),
    "k_decay_steps": (20000, "k would never come down to its value in a run of usual length"),
    "lr_warmup_steps": (1000, "a short run would end inside the warmup"),
    "finetune": (False, "it is a path"),
    "weight_decay": (0.0, "it was dropped, the optimizer's own is used"),
}
FAULTY_FOR_TRANSCODERS: dict[str, tuple[Any, str]] = {"normalize_decoder": (True, "a transcoder's decoder starts at zero")}
# Settings that the old program accepted and did not obey.
IGNORED = {
    "weight_decay": "was dropped",
    "max_steps": "was dropped",
    "save_dir": "was rewritten",
}
IGNORED_FOR_TRANSCODERS = dict.fromkeys(("batch_size", "grad_acc_steps", "loss_fn"), "was rewritten for transcoders")
KNOWN = [*FIELDS, *RENAMED, *TRACKING]


@dataclass(frozen=True)
class Imported:
    """What a file means: values of fields, and a line for everything that is not taken as it stands."""

    values: dict[str, Any]
    notes: list[str]


def read(path: Path) -> Imported:
    """Reads a file. Raises ConfigError for one that is no JSON object of known keys with values of their types."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique, parse_constant=_no_number)
    except OSError as error:
        raise ConfigError(f"json={path}: cannot be read ({error.strerror}); check the path") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"json={path}: no JSON, line {error.lineno}, column {error.colno}: {error.msg}") from error
    except (UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"json={path}: no JSON: {error}") from error
    if not isinstance(given, dict):
        raise ConfigError(f'json={path}: holds no object; write {{"model_type": "sae"}}')
    if faults := [*_unknown(path, given), *_mistyped(path, given)]:
        raise ConfigError(*faults)
    return _mapped(given)


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{twice} stands there twice; leave one out")
    return dict(pairs)


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _unknown(path: Path, given: Mapping[str, Any]) -> list[str]:
    found = []
    for name in given.keys() - set(KNOWN):
        near = get_close_matches(name, KNOWN, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "see sae-train --help for all fields"
        found.append(f"json={path}: nobody knows {name}; {hint}")
    return sorted(found)


def _mistyped(path: Path, given: Mapping[str, Any]) -> list[str]:
    hints = get_type_hints(Config)
    found = []
    for name, value in given.items():
        wanted = {"experiment_tracker": Tracker, "log_to_wandb": bool}.get(name) or hints.get(RENAMED.get(name, name))
        if wanted is None or (name in FAULTY and _same(value, FAULTY[name][0])) or _fits(value, wanted):
            continue
        found.append(f"json={path}: {name} is {json.dumps(value)}, and must be {_words(wanted)}")
    return found


def _same(value: Any, other: Any) -> bool:
    """Equal, and not as true equals 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a JSON value is one of a field's type, with nothing converted but whole numbers to floats."""
    if get_origin(wanted) in (Union, types.UnionType):
        return any(_fits(value, one) for one in get_args(wanted))
    if get_origin(wanted) is list:
        return isinstance(value, list) and all(_fits(one, get_args(wanted)[0]) for one in value)
    if isinstance(wanted, type) and issubclass(wanted, StrEnum):
        return isinstance(value, str) and value in list(wanted)
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))


NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", types.NoneType: "null"}


def _words(wanted: Any) -> str:
    """A type for a message."""
    if get_origin(wanted) in (Union, types.UnionType):
        return " or ".join(map(_words, get_args(wanted)))
    if get_origin(wanted) is list:
        return f"a list, each of it {_words(get_args(wanted)[0])}"
    return NAMES.get(wanted) or "one of " + ", ".join(f'"{choice}"' for choice in wanted)


def _mapped(given: Mapping[str, Any]) -> Imported:
    """The fields that a file's keys mean."""
    values: dict[str, Any] = {}
    notes: list[str] = []
    transcodes = given.get("model_type") == ModelType.transcoder
    ignored = IGNORED | (IGNORED_FOR_TRANSCODERS if transcodes else {})
    faulty = FAULTY | (FAULTY_FOR_TRANSCODERS if transcodes else {})
    for name, value in given.items():
        if name in TRACKING:
            continue
        if name in faulty and _same(value, faulty[name][0]):
            default, why = faulty[name]
            ours = json.dumps(getattr(Config(), name))
            notes.append(f"{name}={json.dumps(default)}, the old default, is replaced by {ours}: {why}")
            continue
        if name in RENAMED:
            notes.append(f"{name} is now {RENAMED[name]}")
        elif name in ignored and value is not None:
            notes.append(f"{name}={json.dumps(value)} {ignored[name]} by the old program, and is obeyed now")
        elif name == "hookpoints" and value and any("*" in pattern for pattern in value):
            notes.append("hookpoints: * stays within one part of a module's name now, ** crosses dots")
        values[RENAMED.get(name, name)] = value
    if any(name in given for name in TRACKING):
        values["tracker"], note = _tracker(given)
        notes.append(note)
    return Imported(values, notes)


def _without_unread(values: dict[str, Any], tracker: str) -> list[str]:
    """Takes out of `values` what the tracker does not read, and says so."""
    why = {"none": "nothing is logged to a tracker", "trackio": "trackio keeps its runs on this machine, without entities"}
    unread = {"none": ("project", "entity"), "trackio": ("entity",)}.get(tracker, ())
    taken = {name: values.pop(name) for name in unread if name in values}
    return [f"{name}={json.dumps(value)} is left out: {why[tracker]}" for name, value in taken.items() if value is not None]


def _tracker(given: Mapping[str, Any]) -> tuple[str, str]:
    """The tracker that two keys of the old program mean, and what is said of it."""
    named = given.get("experiment_tracker", "wandb")
    if not given.get("log_to_wandb", False):
        return "none", f"experiment_tracker={named} without log_to_wandb=true is now tracker=none"
    had = "; the old program never logged to it" if named == "trackio" else ""
    return named, f"log_to_wandb=true, experiment_tracker={named} are now tracker={named}{had}"


def overrides(values: Mapping[str, Any]) -> list[str]:
    """The fields as overrides of a command line; those that are groups too as their choices."""
    return [f"{name}={value if name in GROUPS else literal(value)}" for name, value in values.items()]


def literal(value: Any) -> str:
    """A JSON value in Hydra's grammar for overrides."""
    if isinstance(value, str):
        # Backslashes count before a quote only; OmegaConf would resolve ${...}.
        escaped = re.sub(r'(\\*)("|\Z)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), _uninterpolated(value))
        return f'"{escaped}"'
    if isinstance(value, list):
        return f"[{','.join(map(literal, value))}]"
    return json.dumps(value)


def _uninterpolated(text: str) -> str:
    """A text that OmegaConf takes as it is, though it may hold ${...}."""
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", text)


def expanded(arguments: Sequence[str], choices: Callable[[str, str], set[str]]) -> tuple[list[str], list[str]]:
    """A command line with `json=FILE` replaced by what the file means, and the lines to be said of that.

    What stands on the command line beside it takes the file's place. choices: the fields that GROUP=CHOICE sets. Raises ConfigError.
    """
    places = [i for i, argument in enumerate(arguments) if argument.startswith("json=")]
    if not places:
        return list(arguments), []
    if len(places) > 1:
        raise ConfigError(f"{' '.join(arguments[i] for i in places)}: more than one file; put what you need into one")
    path = Path(arguments[places[0]].removeprefix("json="))
    if not path.name:
        raise ConfigError("json=: needs the path of a file, as in json=config.json")
    imported = read(path)
    values, notes = dict(imported.values), [f"{path}: {note}" for note in imported.notes]
    for argument in arguments:
        name, _, value = argument.lstrip("+").partition("=")
        taken = ({name} | (choices(name, value) if name in GROUPS else set())) & values.keys()
        if taken and not argument.startswith("-"):
            notes.append(f"{path}: {', '.join(sorted(taken))} of the file give{'s' * (len(taken) == 1)} way to {argument}")
            values = {field: kept for field, kept in values.items() if field not in taken}
    asked = [argument.partition("=")[2] for argument in arguments if argument.startswith("tracker=")]
    notes += [f"{path}: {note}" for note in _without_unread(values, asked[-1] if asked else values.get("tracker", "none"))]
    before, after = arguments[: places[0]], arguments[places[0] + 1 :]
    return [*before, *overrides(values), *after], notes


def converted(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The file of `json=FILE` as an experiment of conf/experiment, and the lines to be said of it. Raises ConfigError."""
    if len(arguments) != 1 or not arguments[0].startswith("json="):
        rest = " ".join(argument for argument in arguments if not argument.startswith("json=")) or "no, or more than one, file"
        raise ConfigError(f"--to-yaml with {rest}: converts one file as it is; write json=FILE --to-yaml, and change the YAML")
    path = Path(arguments[0].removeprefix("json="))
    imported = read(path)
    values = {name: _uninterpolated(value) if isinstance(value, str) else value for name, value in imported.values.items()}
    notes = [*imported.notes, *_without_unread(values, values.get("tracker", "none"))]
    chosen = [{f"override /{name}": values.pop(name)} for name in GROUPS if name in values]
    name = re.sub(r"[^\w]+", "_", path.stem)
    parts = [
        "# @package _global_",
        f"# {path.name}; as {name}.yaml in conf/experiment, or in experiment/ of a --config-dir:   sae-train experiment={name}",
        yaml.safe_dump({"defaults": [*chosen, "_self_"]} | values, sort_keys=False),
    ]
    return "\n".join(parts), [f"{path}: {note}" for note in notes]
