"""The page of latents: one folder that opens from disk, without a server or network.

index.html            the page; beside it its style and scripts, copies of assets/
data/index.js         the runs and coders, and where their data lie
data/vocabulary<n>.js the texts of a model's tokens
data/coder<n>/        the data of a coder (shards.py)
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sae_transcoder.coder.names import coder_dir
from sae_transcoder.process.atomic_files import opened_alone
from sae_transcoder.reports.errors import ReportError
from sae_transcoder.reports.latents_page.shards import LATENTS, ROWS, put, write_coder
from sae_transcoder.run_store.checked_files import printable
from sae_transcoder.run_store.latent_files import read_vocabulary
from sae_transcoder.run_store.latents_pass import LatentsPass, read_pass

INDEX = "index.html"
SHOWN = ("model_name", "dataset_name", "text", "sequences", "positions", "ranges", "histogram_edges")


def coder_link(title: str, coder: str) -> str:
    """The part of the page's address, from # on, that leads to the latents of a coder; with /<latent> behind it to one of them."""
    return f"#/{quote(printable(title), safe='')}/{quote(coder, safe='')}"


def write_page(folders: Sequence[tuple[str, Path]], out: Path) -> Path:
    """Writes the page into the folder `out`, which it replaces as a whole, and returns the path of its index.html.

    folders: (title, folder that holds a pass.json), e.g. the name of a run and its latents/coders.
    Raises ReportError where a title is there twice, a folder has no pass, or `out` cannot be written or is something else; DamagedFile.
    """
    passes = [(title, folder, pass_of(folder)) for title, folder in folders]
    titles = [title for title, _, _ in passes]
    if twice := sorted({title for title in titles if titles.count(title) > 1}):
        raise ReportError(f"{', '.join(twice)}: the title of several folders of latents; give each its own")
    if not replaceable(out):
        raise ReportError(f"{out}: not a page of latents, and it would be replaced; choose another place")
    place = out.resolve()  # of a link, what it leads to
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = place.with_name(f".{place.name}.lock")
        with opened_alone(lock):  # another report may write the same page
            try:
                replace_page(place, passes)
            finally:
                lock.unlink()
    except OSError as error:
        raise ReportError(f"{out}: cannot be written ({error.strerror}); choose another place") from error
    return out / INDEX


def replace_page(place: Path, passes: Sequence[tuple[str, Path, LatentsPass]]) -> None:
    """Writes the page beside its place, then moves it there, so that a reader finds the old one or the new."""
    staged, old = place.with_name(f".{place.name}.new"), place.with_name(f".{place.name}.old")
    try:
        for left in (staged, old):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        with as_file(files(__package__) / "assets") as assets:
            shutil.copytree(assets, staged)
        write_data(passes, staged / "data")
        if place.exists():
            place.rename(old)
        staged.rename(place)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def pass_of(folder: Path) -> LatentsPass:
    """The pass whose files lie in the folder. Raises ReportError where there is none, DamagedFile."""
    if (found := read_pass(folder)) is None:
        raise ReportError(f"{folder}: no pass.json, so no latents to show; sae-latents makes it")
    return found


def replaceable(out: Path) -> bool:
    """Whether nothing is lost when the folder is replaced: it is not there, is empty, or is such a page."""
    if not out.exists():
        return True
    index = out / "data" / "index.js"
    is_page = index.is_file() and index.read_bytes().startswith(b'register("index"')
    return is_page or (out.is_dir() and not any(out.iterdir()))


def write_data(passes: Sequence[tuple[str, Path, LatentsPass]], data: Path) -> None:
    """Writes data/: the vocabularies, each once, the shards of all coders, and last the index."""
    vocabularies: list[list[str]] = []
    runs: list[dict[str, Any]] = []
    coders = 0
    for title, folder, latents_pass in passes:
        vocabulary = [text or "" for text in read_vocabulary(folder)]
        if vocabulary not in vocabularies:
            put(data, f"vocabulary{len(vocabularies)}", vocabulary)
            vocabularies.append(vocabulary)
        bins = len(latents_pass.histogram_edges) - 1
        described = []
        for coder in latents_pass.coders:
            shards = write_coder(folder / coder_dir(coder.name), data, f"coder{coders}", bins)
            described.append(asdict(coder) | shards | {"tokens": latents_pass.tokens[coder.name]})
            coders += 1
        run = {"title": printable(title), "vocabulary": f"vocabulary{vocabularies.index(vocabulary)}", "coders": described}
        runs.append(run | {name: getattr(latents_pass, name) for name in SHOWN})
    put(data, "index", {"rows": ROWS, "latents": LATENTS, "runs": runs})
