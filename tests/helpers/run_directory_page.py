"""The tables of docs/run_directory.md, and files that have no line there."""

import os
import re
from pathlib import Path

from helpers import ROOT
from sae_transcoder.run_store import status

PAGE = (ROOT / "docs" / "run_directory.md").read_text()
RUN, SWEEP, CACHE = "A run", "A sweep", "The cache"
# {section: where the paths of its table lie in a run's directory}
INSIDE = {
    "Coders": r"(coders|best|snapshots/step\d+_tokens\d+)/(seed\d+/)?",
    "Evaluations on other data": r"evals/(coders|best|snapshots/step\d+_tokens\d+)/",
    "Latents": r"latents/((coders|best|snapshots/step\d+_tokens\d+)/|snapshots/(?=\.)|(?=\.))",
}


def paths(section: str) -> list[str]:
    """The paths in the table of a section: capitals stand for a name, `...` for everything below, brackets for what may be missing."""
    (table,) = re.findall(rf"^##+ {section}$(.*?)(?:^##|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    return re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE)


def patterns(section: str) -> list[str]:
    """Regular expressions of the paths that a section knows; for a run, its folders with tables of their own by these alone."""
    if section != RUN:
        return [pattern(path) for path in paths(section)]
    folders = {f"{name}/..." for name in ("coders", "best", "snapshots", "evals", "latents")}
    return [pattern(path) for path in paths(RUN) if path not in folders] + [
        place + pattern(path) for inner, place in INSIDE.items() for path in paths(inner)
    ]


def pattern(path: str) -> str:
    """A regular expression of the paths that such a path stands for."""
    kinds = {"...": ".+", "[": "(?:", "]": ")?"}
    parts = re.findall(r"\.\.\.|[][]|[A-Z]+|[^][A-Z.]+|\.", path)
    return "".join(kinds.get(part, "[^/]+" if part.isupper() else re.escape(part)) for part in parts)


def undocumented(folder: Path, outside: str = SWEEP) -> list[str]:
    """Files below a folder that the page has no line for. outside: the section for files that lie in no run."""
    known = {section: patterns(section) for section in (RUN, outside)}
    missing = []
    for place, _, names in os.walk(folder):
        inside = [Path(place), *Path(place).parents]
        inside = inside[: inside.index(folder) + 1]
        run = next((directory for directory in inside if (directory / status.NAME).exists()), None)
        for name in names:
            path = str((Path(place) / name).relative_to(run or folder))
            if not any(re.fullmatch(of_page, path) for of_page in known[RUN if run else outside]):
                missing.append(path)
    return missing
