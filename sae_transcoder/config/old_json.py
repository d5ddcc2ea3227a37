"""Flat JSON files of the program that this one replaces. `json=FILE` on the command line stands for the overrides that the file means."""

import json
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml

from sae_transcoder.config import FIELDS, GROUPS, Config, ConfigError, ModelType, Tracker
from sae_transcoder.config.paths import local_path
from sae_transcoder.config.type_checks import ANNOTATIONS, is_of_type
from sae_transcoder.config.unknown_names import name_fault

RENAMED = {"wandb_project": "project", "wandb_entity": "entity", "wandb_log_frequency": "log_every"}
TRACKING = ("experiment_tracker", "log_to_wandb")  # both together are now `tracker`
# Wrong defaults of the old program, and why: a file that spells one out gets this program's default.
WRONG_DEFAULTS: dict[str, tuple[Any, str]] = {
    "device": ("cuda:1", "the second GPU, or none"),
    "k_decay_steps": (20000, "k would never come down to its value in a run of usual length"),
    "lr_warmup_steps": (1000, "a short run would end inside the warmup"),
    "finetune": (False, "it is a path"),
    "weight_decay": (0.0, "it was dropped, the optimizer's own is used"),
}
WRONG_FOR_TRANSCODERS: dict[str, tuple[Any, str]] = {"normalize_decoder": (True, "a transcoder's decoder starts at zero")}
# Settings that the old program accepted and ignored.
IGNORED = {
    "weight_decay": "was dropped",
    "max_steps": "was dropped",
    "save_dir": "was rewritten",
}
IGNORED_FOR_TRANSCODERS = dict.fromkeys(("batch_size", "grad_acc_steps", "loss_fn"), "was rewritten for transcoders")
KNOWN_KEYS = [*FIELDS, *RENAMED, *TRACKING]


@dataclass(frozen=True)
class Imported:
    """A file's meaning: values of fields, and a note on each key that is not taken as it stands."""

    values: dict[str, Any]
    notes: list[str]


def read(path: Path) -> Imported:
    """Reads a file. Raises ConfigError unless it is a JSON object of known keys with values of their types."""
    try:
        content = json.loads(
            path.read_text(encoding="utf-8"), object_pairs_hook=_dict_without_repeats, parse_constant=_refuse_constant
        )
    except OSError as error:
        raise ConfigError(f"json={path}: cannot be read ({error.strerror}); check the path") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"json={path}: no JSON, line {error.lineno}, column {error.colno}: {error.msg}") from error
    except (UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"json={path}: no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f'json={path}: holds no object; write {{"model_type": "sae"}}')
    if faults := [*_unknown_keys(path, content), *_mistyped_values(path, content)]:
        raise ConfigError(*faults)
    return _to_fields(content)


def _dict_without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{twice} stands there twice; leave one out")
    return dict(pairs)


def _refuse_constant(text: str) -> Any:
    """Raises ValueError for NaN and Infinity, which Python's parser would accept."""
    raise ValueError(f"{text} is no JSON number")


def _unknown_keys(path: Path, content: Mapping[str, Any]) -> list[str]:
    unknown = {name: value for name, value in sorted(content.items()) if name not in KNOWN_KEYS}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in unknown.items()}
    return [name_fault(f"json={path}, {name}", name, text, KNOWN_KEYS, "field") for name, text in texts.items()]


def _mistyped_values(path: Path, content: Mapping[str, Any]) -> list[str]:
    types_of_fields = ANNOTATIONS
    faults = []
    for name, value in content.items():
        expected = {"experiment_tracker": Tracker, "log_to_wandb": bool}.get(name) or types_of_fields.get(RENAMED.get(name, name))
        if expected is None or (name in WRONG_DEFAULTS and _same(value, WRONG_DEFAULTS[name][0])) or is_of_type(value, expected):
            continue
        faults.append(f"json={path}: {name} is {json.dumps(value)}, and must be {_type_in_words(expected)}")
    return faults


def _same(value: Any, other: Any) -> bool:
    """Whether two values are equal; true and 1 are not."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", types.NoneType: "null"}


def _type_in_words(field_type: Any) -> str:
    """A type as messages name it."""
    if get_origin(field_type) in (Union, types.UnionType):
        return " or ".join(map(_type_in_words, get_args(field_type)))
    if get_origin(field_type) is list:
        return f"a list, each of it {_type_in_words(get_args(field_type)[0])}"
    return TYPE_NAMES.get(field_type) or "one of " + ", ".join(f'"{choice}"' for choice in field_type)


def _to_fields(content: Mapping[str, Any]) -> Imported:
    """The fields that a file's keys mean, with notes on what differs."""
    values: dict[str, Any] = {}
    notes: list[str] = []
    is_transcoder = content.get("model_type") == ModelType.transcoder
    ignored = IGNORED | (IGNORED_FOR_TRANSCODERS if is_transcoder else {})
    wrong_defaults = WRONG_DEFAULTS | (WRONG_FOR_TRANSCODERS if is_transcoder else {})
    for name, value in content.items():
        if name in TRACKING:
            continue
        if name in wrong_defaults and _same(value, wrong_defaults[name][0]):
            old_default, why = wrong_defaults[name]
            new_default = json.dumps(getattr(Config(), name))
            notes.append(f"{name}={json.dumps(old_default)}, the old default, is replaced by {new_default}: {why}")
            continue
        if name in RENAMED:
            notes.append(f"{name} is now {RENAMED[name]}")
        elif name in ignored and value is not None:
            notes.append(f"{name}={json.dumps(value)} {ignored[name]} by the old program, and is obeyed now")
        elif name == "hookpoints" and value and any("*" in pattern for pattern in value):
            notes.append("hookpoints: * stays within one part of a module's name now, ** crosses dots")
        values[RENAMED.get(name, name)] = value
    if any(name in content for name in TRACKING):
        values["tracker"], note = _tracker(content)
        notes.append(note)
    return Imported(values, notes)


def _remove_unread(values: dict[str, Any], tracker: str) -> list[str]:
    """Removes from `values` what the tracker does not read; returns a note on each."""
    why = {"none": "nothing is logged to a tracker", "trackio": "trackio keeps its runs on this machine, without entities"}
    unread = {"none": ("project", "entity"), "trackio": ("entity",)}.get(tracker, ())
    removed = {name: values.pop(name) for name in unread if name in values}
    return [f"{name}={json.dumps(value)} is left out: {why[tracker]}" for name, value in removed.items() if value is not None]


def _tracker(content: Mapping[str, Any]) -> tuple[str, str]:
    """The tracker that two keys of the old program mean, and a note on it."""
    named = content.get("experiment_tracker", "wandb")
    if not content.get("log_to_wandb", False):
        return "none", f"experiment_tracker={named} without log_to_wandb=true is now tracker=none"
    addition = "; the old program never logged to it" if named == "trackio" else ""
    return named, f"log_to_wandb=true, experiment_tracker={named} are now tracker={named}{addition}"


def overrides(values: Mapping[str, Any]) -> list[str]:
    """The fields as overrides of a command line. A field that is also a group becomes a choice of the group."""
    return [f"{name}={value if name in GROUPS else literal(value)}" for name, value in values.items()]


def literal(value: Any) -> str:
    """A JSON value in Hydra's grammar for overrides."""
    if isinstance(value, str):
        # Hydra reads backslashes as escapes only before a quote; OmegaConf would resolve ${...}.
        escaped = re.sub(r'(\\*)("|\Z)', lambda match: match[1] * 2 + ('\\"' if match[2] else ""), _uninterpolated(value))
        return f'"{escaped}"'
    if isinstance(value, list):
        return f"[{','.join(map(literal, value))}]"
    return json.dumps(value)


def _uninterpolated(text: str) -> str:
    """The text with ${...} escaped, so that OmegaConf leaves it as it is."""
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + "\\${", text)


def expanded(arguments: Sequence[str], choices: Callable[[str, str], set[str]]) -> tuple[list[str], list[str]]:
    """The command line with `json=FILE` replaced by the overrides that the file means, and notes to print.

    Other overrides on the command line take precedence over the file. choices: returns the fields that GROUP=CHOICE sets.
    Raises ConfigError for more than one file, or one that cannot be read.
    """
    places = [i for i, argument in enumerate(arguments) if argument.startswith("json=")]
    if not places:
        return list(arguments), []
    if len(places) > 1:
        raise ConfigError(f"{' '.join(arguments[i] for i in places)}: more than one file; put what you need into one")
    path = _path(arguments[places[0]])
    imported = read(path)
    values, notes = dict(imported.values), [f"{path}: {note}" for note in imported.notes]
    for argument in arguments:
        name, _, value = argument.lstrip("+").partition("=")
        overridden = ({name} | (choices(name, value) if name in GROUPS else set())) & values.keys()
        if overridden and not argument.startswith("-"):
            notes.append(
                f"{path}: {', '.join(sorted(overridden))} of the file give{'s' * (len(overridden) == 1)} way to {argument}"
            )
            values = {field: kept for field, kept in values.items() if field not in overridden}
    trackers = [argument.partition("=")[2] for argument in arguments if argument.startswith("tracker=")]
    notes += [f"{path}: {note}" for note in _remove_unread(values, trackers[-1] if trackers else values.get("tracker", "none"))]
    before, after = arguments[: places[0]], arguments[places[0] + 1 :]
    return [*before, *overrides(values), *after], notes


def _path(argument: str) -> Path:
    """The path in `json=FILE`. Raises ConfigError."""
    if not (text := argument.removeprefix("json=")):
        raise ConfigError("json=: needs the path of a file, as in json=config.json")
    return local_path(text, "json")


def converted(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The file of `json=FILE` as an experiment for conf/experiment, and notes to print. Raises ConfigError."""
    if len(arguments) != 1 or not arguments[0].startswith("json="):
        rest = " ".join(argument for argument in arguments if not argument.startswith("json=")) or "no, or more than one, file"
        raise ConfigError(f"--to-yaml with {rest}: converts one file as it is; write json=FILE --to-yaml, and change the YAML")
    path = _path(arguments[0])
    imported = read(path)
    values = {name: _uninterpolated(value) if isinstance(value, str) else value for name, value in imported.values.items()}
    notes = [*imported.notes, *_remove_unread(values, values.get("tracker", "none"))]
    group_choices = [{f"override /{name}": values.pop(name)} for name in GROUPS if name in values]
    name = re.sub(r"[^\w]+", "_", path.stem)
    sections = [
        "# @package _global_",
        f"# {path.name}; as {name}.yaml in conf/experiment, or in experiment/ of a --config-dir:   sae-train experiment={name}",
        yaml.safe_dump({"defaults": [*group_choices, "_self_"]} | values, sort_keys=False),
    ]
    return "\n".join(sections), [f"{path}: {note}" for note in notes]
