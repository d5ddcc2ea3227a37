"""How often Hydra composes a command's config, and that what sets hydra.mode in place of -m is still found."""

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from hydra._internal.hydra import Hydra

from helpers.sweeps import SHORT, here
from sae_transcoder.config import run_mode

TWO_RUNS = ["k=4,8", "dry_run=true"]


@pytest.fixture
def compositions() -> Iterator[list[object]]:
    """One entry for each time that Hydra composes a config."""
    times: list[object] = []
    compose_config = Hydra.compose_config

    def counted(*args: object, **kwargs: object) -> object:
        times.append(args)
        return compose_config(*args, **kwargs)

    with patch.object(Hydra, "compose_config", counted):
        yield times


@pytest.mark.parametrize("arguments", [["k=0"], ["-m", "k=0,1"]])
def test_a_command_composes_its_config_once(arguments: list[str], compositions: list[object]) -> None:
    assert here(*SHORT, *arguments)[0] == 1
    assert len(compositions) == 1


def test_hydra_by_itself_composes_it_twice(compositions: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, config/run_mode.py may go."""
    monkeypatch.setattr(run_mode, "may_set_mode", lambda overrides, config_dirs: True)
    assert here(*SHORT, "k=0")[0] == 1
    assert len(compositions) == 2


def test_an_override_may_ask_for_a_sweep_in_place_of_m(tmp_path: Path) -> None:
    code, out, _ = here(*SHORT, *TWO_RUNS, "hydra.mode=MULTIRUN", f"save_dir={tmp_path}", f"cache_dir={tmp_path}")
    assert (code, "2 runs (2 new)" in out) == (0, True), out


def test_a_file_of_a_folder_of_the_users_may_ask_for_a_sweep(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "grid.yaml").write_text("# @package _global_\ndefaults: [demo]\nhydra:\n  mode: MULTIRUN\n")
    arguments = ["experiment=grid" if word == "experiment=demo" else word for word in SHORT]
    code, out, errors = here(
        *arguments, *TWO_RUNS, f"save_dir={tmp_path}", f"cache_dir={tmp_path}", "--config-dir", str(folder.parent)
    )
    assert (code, "2 runs (2 new)" in out) == (0, True), out + errors


def test_a_file_that_was_added_to_conf_may_ask_for_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_mode, "CONF", tmp_path)
    assert not run_mode.may_set_mode(["k=4"], [])
    (tmp_path / "grid.yaml").write_text("hydra:\n  mode: MULTIRUN\n")
    assert run_mode.may_set_mode(["k=4"], [])
