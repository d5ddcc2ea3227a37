"""What commands of tests take from before is what Hydra would read anew."""

from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from helpers import parsed_once


def read(path: Path) -> object:
    with path.open() as file:
        return OmegaConf.load(file)


def test_each_caller_gets_its_own_copy_and_a_changed_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    for text, value in [("a: {b: 1}", 1), ("a: {b: 1}", 1), ("a: {b: 3}", 3)]:
        path.write_text(text)
        config = read(path)
        assert config == OmegaConf.create({"a": {"b": value}}) == parsed_once.read(path)
        config.a.b = 2
    parser = OverridesParser.create()
    for _ in range(2):
        override = parser.parse_override("+k@p=[1,x]")
        assert override == parsed_once.parse(parser, "+k@p=[1,x]", "override")
        override.value().append(2)
        override.key_or_group = "l"


def test_a_file_that_cannot_be_parsed_is_named(tmp_path: Path) -> None:
    (tmp_path / "some.yaml").write_text("a: [")
    with pytest.raises(yaml.YAMLError, match=r"some\.yaml"):
        read(tmp_path / "some.yaml")
