"""Links, pictures and fields of the pages: what they lead to is there, and what the code has is on them."""

import re
from pathlib import Path

import pytest

import fields_page
from helpers import ROOT
from helpers.pages import PAGES
from sae_transcoder.config import FIELDS
from sae_transcoder.config.field_meanings import meanings

FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r'(?:!\[[^\]]+\]\(|<img [^>]*src=")([^)"]+)')
LINK = re.compile(r"(?<=\]\()([^)#\s]*)#?([^)\s]*)")


def anchors(page: Path) -> set[str]:
    """The names by which links find a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading_that_there_are(page: Path) -> None:
    for path, anchor in LINK.findall(FENCED.sub("", page.read_text())):
        if "://" in path:
            continue
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def test_every_picture_is_one() -> None:
    pictures = {page.parent / picture for page in PAGES for picture in PICTURE.findall(page.read_text())}
    assert len(pictures) > 3
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_the_page_of_fields_is_that_of_the_code() -> None:
    assert fields_page.PAGE.read_text() == fields_page.page(), "python docs/scripts/fields_page.py"


def test_every_field_has_a_meaning() -> None:
    documented = [name for fields in meanings().values() for name in fields]
    assert sorted(documented) == sorted(FIELDS)


@pytest.mark.parametrize("group", meanings(), ids=lambda group: group.__name__)
def test_the_page_that_a_field_leads_to_names_it(group: type) -> None:
    silent = []
    for name in meanings()[group]:
        page = fields_page.explained_in(group, name)
        if not re.search(rf"(`|\b){name}(`|=)", (fields_page.PAGE.parent / page).read_text()):
            silent.append(f"{name}: {page}")
    assert not silent
