"""`--version` of every command."""

import argparse
from typing import Any

from sae_transcoder.process import code_version

OPTION = "--version"


def version_line(program: str) -> str:
    """What `PROGRAM --version` prints: `sae-train 0.1.0`, or in a clone `sae-train 0.1.0.dev7, commit 1a2b3c4d`."""
    return f"{program} {code_version.current()}"


def add_version(parser: argparse.ArgumentParser) -> None:
    """Adds `--version` to a command line."""
    parser.add_argument(OPTION, action=_Version, help="print the version, in a clone with its commit, and end")


class _Version(argparse.Action):
    """`--version` on argparse's command lines. argparse's own action wants the text beforehand, and this one asks git for it."""

    def __init__(self, option_strings: list[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Prints the version and ends the program."""
        print(version_line(parser.prog))
        parser.exit()
