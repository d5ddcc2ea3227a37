"""The folder of the page of latents: what it replaces, which files it refuses, and that many latents are quick."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from helpers.latents_reader import VOCABULARY, Reader, corpus
from helpers.made_up_latents import MadeUp, write_latents
from sae_transcoder.reports.errors import ReportError
from sae_transcoder.reports.latents_page.page import coder_link, write_page
from sae_transcoder.run_store import latent_files
from sae_transcoder.run_store.checked_files import DamagedFile


def test_it_replaces_a_page_and_nothing_else(tmp_path: Path) -> None:
    folder = write_latents(tmp_path / "a", MadeUp(corpus(500), VOCABULARY, latents=10))
    out = tmp_path / "page"
    assert write_page([("a", folder)], out) == out / "index.html"
    (out / "stray").touch()
    write_page([("a", folder)], out)
    assert not (out / "stray").exists()
    link = tmp_path / "link"
    link.symlink_to(out)
    assert write_page([("a", folder)], link).is_file()
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "link", "page"]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").touch()
    with pytest.raises(ReportError, match="mine: not a page of latents, and it would be replaced"):
        write_page([("a", folder)], mine)
    assert (mine / "thesis.tex").exists()
    with pytest.raises(ReportError, match="a: the title of several folders"):
        write_page([("a", folder), ("a", folder)], out)
    with pytest.raises(ReportError, match=r"mine: no pass.json, so no latents to show; sae-latents makes it"):
        write_page([("mine", mine)], out)


def test_files_that_are_not_what_they_say_are_refused(tmp_path: Path) -> None:
    folder = write_latents(tmp_path / "a", MadeUp(corpus(500), VOCABULARY, latents=10))
    path = folder / "layers.2" / latent_files.CONTEXTS_FILE
    contexts = latent_files.read_table(path)
    for table, said in (
        (contexts.take(np.arange(len(contexts))[::-1]), "rows are not in order of latents"),
        (contexts.drop_columns(["rank"]), "not its columns"),
        (
            contexts.set_column(0, "latent", pa.array(np.full(len(contexts), 11, np.int32))),
            "contexts of latents that latents.parquet lacks",
        ),
    ):
        latent_files.write_table(path, table)
        with pytest.raises(DamagedFile, match=said):
            write_page([("a", folder)], tmp_path / "page")
    latent_files.write_table(path, contexts)
    content = path.read_bytes()
    path.write_bytes(content[:60] + bytes(255 - byte for byte in content[60:64]) + content[64:])
    with pytest.raises(DamagedFile, match="CRC checksum verification failed"):
        latent_files.read_table(path)
    path.write_bytes(b"PAR1")
    with pytest.raises(DamagedFile, match=r"contexts.parquet: cannot be read"):
        write_page([("a", folder)], tmp_path / "page")
    assert not (tmp_path / "page").exists()


@pytest.mark.slow
@pytest.mark.needs("chromium")
def test_65536_latents_are_quick(browser: Any, tmp_path: Path) -> None:
    many = MadeUp(corpus(3000), VOCABULARY, latents=65_536, top=2, ranges=2, length=8)
    index = write_page([("many", write_latents(tmp_path / "many", many))], tmp_path / "page")
    reader = Reader(browser, index)
    start = time.monotonic()
    reader.open(coder_link("many", "layers.2"))
    assert time.monotonic() - start < 6  # 2 s, on a machine that does nothing else
    start = time.monotonic()
    reader.go(f"{coder_link('many', 'layers.2')}/60000")
    assert time.monotonic() - start < 2  # 0.3 s
    reader.page.keyboard.press("Escape")
    reader.page.wait_for_selector(".row .excerpt")
    reader.page.keyboard.press("End")
    reader.page.wait_for_selector(".row .latent >> text=65,534")
    assert reader.page.locator(".row").count() < 80
    assert reader.complaints == []


@pytest.mark.needs("chromium")
def test_a_pass_over_some_latents_and_a_file_that_is_lost(browser: Any, tmp_path: Path) -> None:
    made = MadeUp(corpus(3000), VOCABULARY, latents=400)
    folder = write_latents(tmp_path / "a", made)
    for name in (latent_files.LATENTS_FILE, latent_files.CONTEXTS_FILE):
        path = folder / "layers.2" / name
        latent_files.write_table(path, latent_files.read_table(path, [7, 30, 31, 399]))
    index = write_page([("a", folder)], tmp_path / "page")
    reader = Reader(browser, index)
    reader.open()
    assert reader.latents() == [7, 30, 31, 399]
    reader.go(f"{coder_link('a', 'layers.2')}/31")
    assert reader.page.locator(".context").count() == made.top + made.ranges
    shown = {int(text.split()[0]) for text in reader.page.locator(".values a").all_inner_texts()}
    assert shown <= {7, 30, 31, 399}  # others are no links
    assert reader.complaints == []
    (index.parent / "data" / "coder0" / "latents" / "0.js").unlink()
    reader.open(f"{coder_link('a', 'layers.2')}/30")
    assert (
        "data/coder0/latents/0.js cannot be read: the folder of this page is not complete"
        in reader.page.locator("#fault").inner_text()
    )
