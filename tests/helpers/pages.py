"""The pages that a reader sees: README.md, CONTRIBUTING.md, docs/ and the benchmarks' page, with the commands and code on them."""

import re
import shlex

from helpers import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a page that are in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(block: str) -> list[list[str]]:
    """The words of each command of a block of shell lines; what an `&&` or `|` joins are several commands."""
    found: list[list[str]] = []
    for line in block.splitlines():
        command: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word not in ("&&", "|"):
                command.append(word)
            elif command:
                found.append(command)
                command = []
    return found


COMMANDS = list(
    dict.fromkeys(shlex.join(words) for page in PAGES for block in blocks(page.read_text(), "bash") for words in commands(block))
)
PYTHON = [block for page in PAGES for block in blocks(page.read_text(), "python")]
