"""README.md: short, and its figures are those of the pages that say how they were measured."""

import re

from helpers import ROOT

README = (ROOT / "README.md").read_text()


def rows(text: str) -> list[list[str]]:
    """The cells of the first table of a text, without its line of dashes."""
    table = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert table
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines() if not line.startswith("| ---")]


def test_it_is_read_in_a_few_minutes() -> None:
    assert len(README.splitlines()) <= 150


def test_what_the_demo_printed_is_what_the_page_of_the_first_run_explains() -> None:
    (closing,) = re.findall(r"^done: .*$", README, re.MULTILINE)
    assert closing in (ROOT / "docs" / "first_run.md").read_text().splitlines()


def test_the_comparison_is_that_of_the_benchmarks() -> None:
    measured = (ROOT / "benchmarks" / "README.md").read_text().partition("\n## Results\n")[2]
    _, single, grid = re.split(r"^(?=One run,|On two cores|The grid of 8,)", measured, maxsplit=2, flags=re.MULTILINE)
    expected = []
    for text, columns in ((single, (2, 6, 8)), (grid, (2, 6))):
        headings, *contenders = rows(text)
        assert [headings[column] for column in columns] == ["of ours", "of ours", "held-out FVU"][: len(columns)]
        expected += [[contender[column].removesuffix(".00") for contender in contenders] for column in columns]
    headings, *shown = rows(README.partition("\n## Beside other programs\n")[2])
    assert [name.lower() for name in headings[2:]] == [contender[0] for contender in rows(single)[2:]]
    assert [row[1:] for row in shown] == expected
