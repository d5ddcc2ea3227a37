"""Renews the tables of names in docs/glossary.md, from those by which the program answers them.

python docs/scripts/glossary_page.py
"""

import re
from pathlib import Path

from sae_transcoder.config import FIELDS, GROUPS
from sae_transcoder.config.other_words import BY_SUBJECT, DIFFERENT_HERE, Word

PAGE = Path(__file__).parents[1] / "glossary.md"
BEGIN, END = "<!-- names: python docs/scripts/glossary_page.py -->", "<!-- end of names -->"
OPENING = """\
## Names of other programs

Of SAELens 6.54.12, dictionary_learning 0.1.0, sparsify 1.3.3 and the usual training programs. Such a name on the command line is answered with
what stands here; find it with your browser's search. What is not in the tables has the same name there and here.
"""
DIFFERENT = """\
## Names that mean something else here

| field | what differs |
| --- | --- |
"""
SETTING = re.compile(rf"(?<![\w'`-])('?(?:-m )?(?:{'|'.join((*FIELDS, *GROUPS))})=(?:\[[^\]]*\]|[^\s;|)]*[^\s,;|)])'?)")


def row(names: str, word: Word) -> str:
    """A row of a table: what others write, what it is here, what to write."""
    fix = word.fix.replace("{}", "VALUE").removeprefix("write ")
    return f"| {', '.join(f'`{name}`' for name in names.split())} | {in_code(word.meaning)} | {in_code(fix)} |"


def in_code(text: str) -> str:
    """A text for a cell, its settings and the names of fields as code."""
    text = re.sub(r"^called (\w+) here", r"called `\1` here", text)
    parts = re.split(r"(`[^`]*`)", SETTING.sub(r"`\1`", text.replace("|", "\\|")))
    names = re.compile(rf"(?<![\w-])({'|'.join(name for name in FIELDS if '_' in name)})(?![\w=])")
    return "".join(part if part.startswith("`") else names.sub(r"`\1`", part) for part in parts)


def tables() -> str:
    """The tables as Markdown, a heading for each subject."""
    parts = [OPENING]
    for subject, words in BY_SUBJECT.items():
        rows = "\n".join(row(names, word) for names, word in words.items())
        parts.append(f"### {subject}\n\n| there | here | write |\n| --- | --- | --- |\n{rows}\n")
    parts.append(DIFFERENT + "\n".join(f"| `{field}` | {in_code(text)} |" for field, text in DIFFERENT_HERE.items()))
    return "\n".join(parts)


def placed(text: str) -> str:
    """The page's text with the tables between its marks. Raises ValueError where these are not there once each."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} followed by {END}")
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(placed(PAGE.read_text()))
