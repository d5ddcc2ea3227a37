"""The links of the site, which MkDocs calls (hooks in mkdocs.yml).

Pages link to files of the repository as GitHub wants it: a path from the page's own folder. Files outside docs/ that a page links to become
part of the site. Beyond what GitHub shows, the first mention of a field on a page leads to the field, and the front page opens as README.md.
"""

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from sae_transcoder.config import FIELDS

ROOT = Path(__file__).parents[2]
LINK = re.compile(r'(?<=\]\()[^)#\s]+|(?<= src=")[^"]+')  # the path of [text](path#heading), of <img src="path">
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
FIELD = re.compile(rf"(?<!\[)`({'|'.join(FIELDS)})(=[^`\n]*)?`(?!\])")
FIELDS_PAGE = "fields.md"
OPENING = "<!-- opening of README.md -->"  # where docs/index.md shows it


def in_site(path: str) -> str:
    """Where a file of the repository lies in the site: what is in docs/ lies at its top, README.md is the front page."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def in_repository(path: str) -> str:
    """Where a page of the site lies in the repository."""
    return f"docs/{path}" if (ROOT / "docs" / path).exists() else path


def links_to_files(text: str, path: str) -> dict[str, str]:
    """The links to files in the text of a page at `path` of the repository: {what the link says: path from the repository's root}."""
    links = [link for link in LINK.findall(FENCED.sub("", text)) if "://" not in link]
    targets = {link: normpath(PurePosixPath(path).parent / link) for link in links}
    return {link: target for link, target in targets.items() if (ROOT / target).is_file()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files outside docs/ that the site's pages link to; of pages among them also theirs."""
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()] + ["README.md"]
    seen = set(waiting)
    while waiting:
        page = waiting.pop()
        for target in links_to_files((ROOT / page).read_text(), page).values():
            if target in seen:
                continue
            seen.add(target)
            if not target.startswith("docs/"):
                files.append(File.generated(config, in_site(target), abs_src_path=str(ROOT / target)))
            if target.endswith(".md"):
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A page's text with its links as the site has them."""
    uri = page.file.src_uri
    text = relinked(markdown, in_repository(uri), uri)
    if OPENING in text:
        opening = (ROOT / "README.md").read_text().partition("\n## ")[0]
        text = text.replace(OPENING, relinked(opening.partition("\n")[2], "README.md", uri))
    return text if uri == FIELDS_PAGE or "/" in uri else with_field_links(text)


def outside_code(change: Callable[[str], str], text: str) -> str:
    """The text with `change` made to what is no fenced code."""
    return "".join(part if part.startswith("```") else change(part) for part in FENCED.split(text))


def relinked(text: str, path: str, uri: str) -> str:
    """The text of a page at `path` of the repository, its links as seen from the page `uri` of the site."""
    there = {link: relpath(in_site(target), PurePosixPath(uri).parent) for link, target in links_to_files(text, path).items()}
    return outside_code(lambda part: LINK.sub(lambda match: there.get(match[0], match[0]), part), text)


def with_field_links(text: str) -> str:
    """The text with a link to a field where it is named first, outside headings and code."""
    seen: set[str] = set()

    def link(match: re.Match[str]) -> str:
        if match[1] in seen:
            return match[0]
        seen.add(match[1])
        return f"[{match[0]}]({FIELDS_PAGE}#{match[1]})"

    def change(part: str) -> str:
        return "".join(line if line.startswith("#") else FIELD.sub(link, line) for line in part.splitlines(keepends=True))

    return outside_code(change, text)
