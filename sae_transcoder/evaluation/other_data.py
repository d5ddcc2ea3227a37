"""What a run says of its own data set, where its coders are measured on another one: what that does not have falls back, and is told."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sae_transcoder.config import DEFAULTS, Config, ConfigError, TrainOn, as_list
from sae_transcoder.config.composition import fields_of
from sae_transcoder.config.dataset_checks import READ_BY
from sae_transcoder.config.field_meanings import shown
from sae_transcoder.config.paths import same_place
from sae_transcoder.data import sources
from sae_transcoder.data.file_values import MissingColumn
from sae_transcoder.data.mixture import parts

# What names a part of a data set, or how its file is laid out: of another data set it says nothing.
OF_NAMED_DATA = ("dataset_config", "dataset_split", "eval_split", "tokens_dtype")
COLUMNS = {"text_column": "text", "tokens_column": "input_ids", "messages_column": "messages"}
"""{field: the name that its column usually has}"""


def given_fields(overrides: Sequence[str], groups: Sequence[str]) -> set[str]:
    """The fields that overrides set, by themselves or by the choice of a group."""
    names: set[str] = set()
    for override in overrides:
        name, _, value = override.lstrip("+").partition("=")
        names |= fields_of(name, value, []) if name in groups else {name}
    return names


def fitted(cfg: Config, own: Mapping[str, Any], given: set[str]) -> tuple[Config, list[str]]:
    """`cfg` with the data set's fields as the data to measure have them, and a note for each that is not as in training.

    own: the settings in the coders' files; given: fields that the user has set, which stay. Raises ConfigError, with the columns that there
    are, where none of them is sure to be meant.
    """
    if not given & {"dataset_kind", "dataset_name"} or is_same(cfg, own):
        return cfg, []
    changes: dict[str, Any] = {
        name: DEFAULTS[name] for name, kinds in READ_BY.items() if cfg.dataset_kind not in kinds or name == "dataset_weights"
    }
    if not shares_a_part(cfg, own):
        changes |= {name: DEFAULTS[name] for name in OF_NAMED_DATA}
    if "text_column" in given:
        changes["messages_column"] = None
    if "messages_column" in given:
        changes["text_column"] = DEFAULTS["text_column"]
    changes = {name: value for name, value in changes.items() if name not in given}
    if changes.get("messages_column", cfg.messages_column) is None and "train_on" not in given:
        changes["train_on"] = TrainOn.all
    notes = [
        f"{name}={shown(value)}: the run's own {shown(getattr(cfg, name))} is about its own data"
        for name, value in changes.items()
        if getattr(cfg, name) != value
    ]
    cfg = replace(cfg, **changes)
    if missing := lacking(cfg):
        own_column = getattr(cfg, missing.field)
        changes = other_column(missing, own_column, given)
        place = " and ".join(as_list(cfg.dataset_name))
        notes += [
            f"{name}={shown(value)}: {place} has no {own_column}, which the run read"
            for name, value in changes.items()
            if getattr(cfg, name) != value
        ]
        cfg = replace(cfg, **changes)
        if missing := lacking(cfg):  # another part of a mixture
            raise missing
    return cfg, notes


def is_same(cfg: Config, own: Mapping[str, Any]) -> bool:
    """Whether the data set is that of the run by kind and names, in this order."""
    names, own_names = as_list(cfg.dataset_name), as_list(own["dataset_name"])
    return cfg.dataset_kind == own["dataset_kind"] and len(names) == len(own_names) and all(map(same_place, names, own_names))


def shares_a_part(cfg: Config, own: Mapping[str, Any]) -> bool:
    """Whether a part of the data set is one of the run's."""
    names, own_names = as_list(cfg.dataset_name), as_list(own["dataset_name"])
    return cfg.dataset_kind == own["dataset_kind"] and any(same_place(name, other) for name in names for other in own_names)


def lacking(cfg: Config) -> MissingColumn | None:
    """The error of the first part of the data set that lacks the column to read."""
    return next((missing for part in parts(cfg) if (missing := sources.lacks_column(part))), None)


def other_column(missing: MissingColumn, own_column: str, given: set[str]) -> dict[str, Any]:
    """The fields that have a column read which the data have: that of the usual name, or the only one; in place of conversations their text.

    own_column: the one that the run read. Raises the error where the user has named the column, and where there is none of these.
    """
    field, usual = missing.field, COLUMNS[missing.field]
    if field in given:
        raise missing
    if usual in missing.names:
        return {field: usual}
    if field == "messages_column":
        if "train_on" not in given and (column := only_text(missing.names)):
            return {field: None, "train_on": TrainOn.all, "text_column": column}
    elif len(missing.names) == 1:
        return {field: missing.names[0]}
    raise ConfigError(f"{missing}; {own_column} is what the run read")


def only_text(names: Sequence[str]) -> str | None:
    """The column of text among these; None where it is not sure which one."""
    return COLUMNS["text_column"] if COLUMNS["text_column"] in names else names[0] if len(names) == 1 else None
