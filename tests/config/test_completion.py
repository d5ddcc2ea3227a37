"""Tab completion, as a person sees it in a real bash and a real zsh."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

SHELLS = {
    "bash": (["--norc", "--noprofile", "-i"], []),
    "zsh": (["-f", "-i"], ["autoload -Uz compinit bashcompinit; compinit -uD; bashcompinit"]),
}


def settle(shell: pexpect.spawn) -> None:
    """Clears the line and waits until the shell has done all that was asked of it."""
    shell.send("\x15")
    shell.sendline("echo DO''NE")  # so that what is typed is not what is waited for
    shell.expect_exact("DONE")


@pytest.fixture(scope="module", params=["bash", pytest.param("zsh", marks=pytest.mark.needs("zsh"))])
def shell(request: pytest.FixtureRequest) -> Iterator[pexpect.spawn]:
    """A shell in which the README's lines for completion were entered."""
    arguments, before = SHELLS[request.param]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "TERM": "dumb"}
    opened = pexpect.spawn(request.param, arguments, env=environment, encoding="utf-8", timeout=60, dimensions=(50, 200))
    for line in [*before, 'eval "$(sae-train -sc install=bash)"']:
        settle(opened)
        opened.sendline(line)
    settle(opened)
    yield opened
    opened.close(force=True)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("sae-train optimizer=mu\t", ["optimizer=muon"]),
        ("sae-train model_type=tr\t", ["model_type=transcoder"]),
        ("sae-train model_type=sae expansion_f\t", ["expansion_factor="]),
        ("sae-train -m model=smollm2_\t\t", ["model=smollm2_135m", "model=smollm2_360m"]),
    ],
)
def test_tab_completes_groups_choices_and_fields(shell: pexpect.spawn, typed: str, offered: list[str]) -> None:
    shell.send(typed)
    try:
        for text in offered:
            shell.expect_exact(text)
    finally:
        settle(shell)
