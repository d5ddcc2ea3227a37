"""The pictures of latents: the table of a page, and one latent.

sae-train experiment=demo_batchtopk run_name=latents && sae-latents outputs/latents tokens=200_000 --page
python docs/scripts/latents_pictures.py outputs/latents 1285          writes docs/latents_table.png and docs/latent.png
"""

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

DOCS = Path(__file__).parents[1]
WIDTH = 1200


def main(run: str, latent: str) -> None:
    """Opens the page of a run with one coder in Debian's Chromium."""
    address = (Path(run) / "latents/coders/page/index.html").resolve().as_uri()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 560})
        page.goto(address)
        page.wait_for_selector("text=never fire")
        page.wait_for_timeout(1000)  # rows load as they come into view
        page.screenshot(path=DOCS / "latents_table.png")
        table = page.evaluate("location.hash")
        page.set_viewport_size({"width": WIDTH, "height": 700})
        page.goto(f"{address}{table}/{latent}")
        page.wait_for_selector("text=Strongest")
        page.wait_for_timeout(1000)
        page.screenshot(path=DOCS / "latent.png")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
