"""Every field's value is of its type, elements of lists included, before any rule looks at it."""

from dataclasses import replace

import pytest

from sae_transcoder.config import FIELDS, Config
from sae_transcoder.config.checks import faults
from sae_transcoder.config.type_checks import ANNOTATIONS, is_of_type, type_faults, wanted

SOUND = Config(model_type="sae", model_name="demo", dataset_kind="demo", dataset_name="demo")


def test_all_defaults_are_of_their_types_and_every_type_has_words() -> None:
    assert type_faults(SOUND) == []
    assert set(ANNOTATIONS) == set(FIELDS)
    assert all(wanted(annotation) for annotation in ANNOTATIONS.values())


@pytest.mark.parametrize("name", FIELDS)
def test_a_value_of_no_type_that_a_field_has_is_refused_alone_whatever_the_field(name: str) -> None:
    (fault,) = faults(replace(SOUND, **{name: [[object()]]}))
    assert fault.startswith(f"{name}=[[")
    assert ": must be " in fault


def test_true_is_no_number_and_a_whole_number_is_one() -> None:
    assert not is_of_type(True, int)
    assert not is_of_type(True, float | None)
    assert is_of_type(3, float)
    assert not is_of_type(3.0, int)
    assert is_of_type(None, list[int] | None)
    assert not is_of_type([1, None], list[int] | None)
