"""The table of all fields for the README, from the dataclasses of sae_transcoder/config and the docstrings of their fields.

python docs/field_table.py            prints it
python docs/field_table.py README.md  puts it between the README's two marks
"""

import sys
from pathlib import Path

from sae_transcoder.config import Config
from sae_transcoder.config.field_meanings import meanings, shown

BEGIN, END = "<!-- fields: python docs/field_table.py README.md -->", "<!-- end of fields -->"


def escaped(text: str) -> str:
    """A text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def table() -> str:
    """The table as Markdown: field, default, meaning."""
    defaults = Config()
    lines = ["| field | default | meaning |", "| --- | --- | --- |"]
    for group, meaning in meanings().items():
        heading = (group.__doc__ or "").split("; ")[0].strip().removesuffix(".")
        lines.append(f"| **{heading}** | | |")
        lines += [f"| `{name}` | `{shown(getattr(defaults, name))}` | {escaped(text)} |" for name, text in meaning.items()]
    return "\n".join(lines)


def placed(readme: str) -> str:
    """A README's text with the table between its marks. Raises ValueError where these are not there once each."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} followed by {END}")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main() -> None:
    """Prints the table, or renews it in the files that the command line names."""
    if len(sys.argv) == 1:
        print(table())
    for name in sys.argv[1:]:
        Path(name).write_text(placed(Path(name).read_text()))


if __name__ == "__main__":
    main()
