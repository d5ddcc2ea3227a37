"""What a command line composes to, and how it is refused."""

import sys

import pytest

from sae_transcoder import train
from sae_transcoder.config import Config, composer


def composed(*overrides: str) -> Config:
    """What `sae-train OVERRIDES` would run."""
    return composer.composed(overrides)


def refused(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> str:
    """What `sae-train OVERRIDES` prints on its way to exit code 1."""
    monkeypatch.setattr(sys, "argv", ["sae-train", *overrides])
    with pytest.raises(SystemExit) as stop:
        train.main()
    assert stop.value.code == 1
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return printed.err
