"""What a command line composes to, and how it is refused."""

import sys

import pytest

from sae_transcoder import train
from sae_transcoder.config import Config, ConfigError, composer
from sae_transcoder.launch.checks import check_cluster, plan_run
from sae_transcoder.preflight.plan import check_settings


def composed(*overrides: str) -> Config:
    """What `sae-train OVERRIDES` would run."""
    return composer.composed(overrides)


def faults_of(*overrides: str) -> str:
    """The faults for which `sae-train OVERRIDES` is refused, by the same checks in the same order, without Hydra's start of a command."""
    try:
        check_settings(cfg := composed(*overrides))
        check_cluster(cfg)
        plan_run(cfg)
    except ConfigError as error:
        return str(error)
    raise AssertionError(f"{overrides} are not refused")


def refused(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> str:
    """What `sae-train OVERRIDES` prints on its way to exit code 1."""
    monkeypatch.setattr(sys, "argv", ["sae-train", *overrides])
    with pytest.raises(SystemExit) as stop:
        train.main()
    assert stop.value.code == 1
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return printed.err
