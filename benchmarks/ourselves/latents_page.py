"""How quick is the page of latents? Makes the files of a pass over 65,536 latents, writes their page, opens it in chromium.

python benchmarks/ourselves/latents_page.py [latents] [strongest] [of each range] [tokens]      a minute, 1 GB of memory

Made up: of each of 65,536 latents 8 strongest contexts and one of each of 10 ranges, 32 tokens each, from Python's own sources; 49,152 tokens
in the vocabulary. sae-latents keeps 20, 2, 49 by default: `8192 20 2 49` has shards of that size.
The files have just been written: they come from memory, not from the disk. Times in the browser are medians of five.
"""

import argparse
import concurrent.futures
import inspect
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import typing
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from playwright.sync_api import Browser, Page, sync_playwright

from helpers.made_up_latents import MadeUp, python_text, write_latents
from helpers.programs import CHROMIUM
from sae_transcoder.reports.latents_page.page import coder_link

TITLE, CODER, TIMES, VOCABULARY = "made-up", "layers.2", 5, 49_152
SIZES = [65_536, 8, 1, 32]  # latents, strongest contexts, contexts of each range, tokens of a context
MODULES = [argparse, concurrent.futures, inspect, statistics, subprocess, tarfile, tempfile, typing]
LATENT = """latent => new Promise(resolve => {
    const begin = performance.now();
    const look = () => document.querySelector("article .context") && document.title.startsWith(`latent ${latent},`)
        ? requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - begin))) : setTimeout(look, 1);
    location.hash = `LINK/${latent}`;
    look();
})"""  # milliseconds until the latent is painted


def make(folder: Path, latents: int, top: int, each: int, length: int) -> None:
    """Writes the files of the pass."""
    corpus, vocabulary = python_text(MODULES)
    vocabulary += [f" word{i}" for i in range(VOCABULARY - len(vocabulary))]
    write_latents(folder, MadeUp(corpus, vocabulary, latents, top, each=each, length=length, coders=[CODER]))


def written(folder: Path, out: Path) -> tuple[float, float]:
    """Writes the page in a process of its own; its seconds, and its peak memory beyond that of its imports in MB."""
    code = (
        "import re, sys, time, pathlib; from sae_transcoder.reports.latents_page.page import write_page\n"
        "peak = lambda: int(re.search('VmHWM:\\s*(\\\\d+)', pathlib.Path('/proc/self/status').read_text())[1]) / 1024\n"
        "before, start = peak(), time.monotonic()\n"
        f"write_page([({TITLE!r}, pathlib.Path(sys.argv[1]))], pathlib.Path(sys.argv[2]))\n"
        "print(time.monotonic() - start, peak() - before)"
    )
    command = [sys.executable, "-c", code, str(folder), str(out)]
    seconds, memory = map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    return seconds, memory


def opened(browser: Browser, url: str) -> tuple[Page, float]:
    """A new page, and the seconds until its first rows are complete."""
    page = browser.new_context(viewport={"width": 1300, "height": 900}).new_page()
    start = time.monotonic()
    page.goto(url)
    page.wait_for_selector(".row .excerpt, article .context")
    return page, time.monotonic() - start


def seconds(act: Callable[[], object]) -> float:
    start = time.monotonic()
    act()
    return time.monotonic() - start


def search(page: Page, text: str) -> tuple[float, float, str]:
    """Seconds until the first rows found are there and until all contexts are read, and what the page then says."""
    page.locator("#search").fill("")
    page.wait_for_selector(".row .where", state="detached")
    start = time.monotonic()
    page.locator("#search").fill(text)
    page.wait_for_selector(".row .where")
    first = time.monotonic() - start
    page.wait_for_selector("progress", state="hidden", timeout=120_000)
    return first, time.monotonic() - start, page.locator("[role=status]").inner_text()


def fires(latent: int) -> int:
    """This latent, or the one before where it never fires."""
    return latent - (latent % MadeUp.dead == MadeUp.dead - 1)


def measure(browser: Browser, url: str, latents: int) -> None:
    """Prints the times in the browser."""
    link = coder_link(TITLE, CODER)
    times = [opened(browser, url)[1] for _ in range(TIMES)]
    print(f"first view                      {statistics.median(times):.2f} s, at most {max(times):.2f} s")
    times = [opened(browser, f"{url}{link}/{fires(latents * i // TIMES)}")[1] for i in range(TIMES)]
    print(f"a latent, opened by its address {statistics.median(times):.2f} s, at most {max(times):.2f} s")
    page = opened(browser, url)[0]
    times = [page.evaluate(LATENT.replace("LINK", link), fires(latents * i // 23)) / 1000 for i in range(1, 22)]
    print(f"a latent, from another          {statistics.median(times):.3f} s, at most {max(times):.3f} s")
    page.keyboard.press("Escape")
    page.wait_for_selector(".row .excerpt")
    for column in ("density", "strongest context"):
        head = page.get_by_role("button", name=column)
        times = [seconds(lambda head=head: (head.click(), page.wait_for_selector(".row .excerpt"))) for _ in range(TIMES)]
        print(f"sorted by {column:21} {statistics.median(times):.2f} s, at most {max(times):.2f} s")
    for text in ("import", "isinstance(obj", "word4"):
        first, last, told = search(page, text)
        print(f"search {text!r:24} {first:.2f} s to the first, {last:.1f} s to the last: {told}")


def main() -> None:
    given = list(map(int, sys.argv[1:]))
    latents, *contexts = given + SIZES[len(given) :]
    with tempfile.TemporaryDirectory() as place:
        folder, out = Path(place) / "latents", Path(place) / "page"
        make(folder, latents, *contexts)
        took, memory = written(folder, out)
        files = [path for path in out.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files) / 1e6
        parquet = sum(path.stat().st_size for path in folder.rglob("*.parquet")) / 1e6
        print(f"{latents:,} latents, {parquet:.0f} MB of Parquet; page: {size:.0f} MB in {len(files):,} files")
        print(f"writing the page                {took:.1f} s, {memory:.0f} MB of memory")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            measure(browser, (out / "index.html").as_uri(), latents)
            browser.close()


if __name__ == "__main__":
    main()
