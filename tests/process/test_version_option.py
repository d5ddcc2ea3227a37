"""--version of every command, and the version in Python."""

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version

import pytest

import sae_transcoder
from sae_transcoder import evaluate, export, report, show_latents, train
from sae_transcoder.process import code_version

COMMANDS = {
    "sae-train": train.main,
    "sae-eval": evaluate.main,
    "sae-export": export.main,
    "sae-latents": show_latents.main,
    "sae-report": report.main,
}
HEAVY = {"torch", "transformers", "sparsify", "datasets"}


@pytest.mark.parametrize(("name", "main"), COMMANDS.items())
def test_every_command_prints_its_version_and_ends(
    name: str, main: Callable[[], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--version"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert capsys.readouterr().out == f"{name} {code_version.current()}\n"


def test_the_version_is_told_without_torch() -> None:
    code = "import atexit, sys; from sae_transcoder import train; atexit.register(lambda: print(*sys.modules)); train.main()"
    printed = subprocess.run(
        [sys.executable, "-c", code, "--version"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert printed[0] == f"sae-train {code_version.current()}"
    assert HEAVY.isdisjoint(printed[1].split())


def test_the_version_in_python_is_that_of_the_installed_package() -> None:
    assert sae_transcoder.__version__ == version("sae-transcoder")


def test_the_commit_of_a_clone_takes_the_place_of_the_one_at_its_last_install() -> None:
    release = "0.1.0.dev7+g0123456"
    assert str(code_version.Code("digest", release)) == release
    assert str(code_version.Code("digest", release, "89abcdef" * 5, 2)) == "0.1.0.dev7, commit 89abcdef, 2 files changed since"
