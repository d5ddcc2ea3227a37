"""Texts that Hydra parses anew for every command, parsed once by each process that tests: a fifth of what a command takes to compose its config.

A file is known by its text and an override by its letters, so that a file that changes is read anew. Each command gets a copy.
"""

import copy
from functools import cache
from io import StringIO
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf

read, parse = OmegaConf.load, OverridesParser.parse_rule


@cache
def of_text(text: str) -> DictConfig | ListConfig:
    """What a file of this text holds."""
    return read(StringIO(text))


@cache
def of_rule(text: str, rule: str) -> Any:
    """What a text means by a rule of Hydra's grammar of overrides."""
    return parse(OverridesParser.create(), text, rule)


def load(file_: Any) -> DictConfig | ListConfig:
    """OmegaConf.load of a path or an open file."""
    if not hasattr(file_, "read"):
        return read(file_)
    text = file_.read()
    try:
        return copy.deepcopy(of_text(text))
    except yaml.YAMLError:
        file_.seek(0)
        return read(file_)  # whose error names the file


def parse_rule(self: OverridesParser, s: str, rule_name: str) -> Any:
    """OverridesParser.parse_rule."""
    return copy.deepcopy(of_rule(s, rule_name))


def install() -> None:
    """Has commands in this process, and in those forked from it, take what was parsed before."""
    OmegaConf.load = staticmethod(load)  # type: ignore[method-assign]
    OverridesParser.parse_rule = parse_rule  # type: ignore[method-assign]
