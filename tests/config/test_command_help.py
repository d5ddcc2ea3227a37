"""sae-train --help: Hydra's text, sooner."""

import sys
from collections.abc import Iterator

import pytest
from hydra.core.config_store import ConfigStore

from sae_transcoder import train


@pytest.fixture
def groups_of_a_plugin() -> Iterator[None]:
    """Groups that another package registers: one with choices, one inside it, one without any."""
    store = ConfigStore.instance()
    store.store(group="extra", name="usual", node={})
    store.store(group="extra/nested", name="other", node={})
    store.store(group="outer/inner", name="deep", node={})
    yield
    del store.repo["extra"], store.repo["outer"]


def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["sae-train", *arguments])
    with pytest.raises(SystemExit) as stop:
        train.main()
    assert not stop.value.code
    return capsys.readouterr().out


@pytest.mark.usefixtures("groups_of_a_plugin")
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_is_the_text_that_hydra_prints(
    option: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = printed(capsys, monkeypatch, option)
    by_hydra = printed(capsys, monkeypatch, option, "model_type=sae")  # with overrides Hydra prints it itself
    assert text == by_hydra
    assert "extra/nested: other\n" in text
