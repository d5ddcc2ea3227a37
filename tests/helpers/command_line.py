"""What a command line composes to, and how it is refused."""

import sys
from functools import cache

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from sae_transcoder import train
from sae_transcoder.config import Config, ConfigError, composition
from sae_transcoder.config.command_line import quoted


@cache
def composer() -> composition.JobComposer:
    """Composes ten times as fast as Hydra where groups come again; tests/launch/test_sweep.py compares the two."""
    with composition.hydra_on_conf():
        loader = GlobalHydra.instance().config_loader()
        return composition.JobComposer(loader, loader.load_configuration("config", [], run_mode=RunMode.RUN))


def composed(*overrides: str) -> Config:
    """What `sae-train OVERRIDES` would run."""
    if faults := composition.override_faults(overrides, []):
        raise ConfigError(*faults)
    return composer().compose(quoted(overrides))


def refused(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> str:
    """What `sae-train OVERRIDES` prints on its way to exit code 1."""
    monkeypatch.setattr(sys, "argv", ["sae-train", *overrides])
    with pytest.raises(SystemExit) as stop:
        train.main()
    assert stop.value.code == 1
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return printed.err
