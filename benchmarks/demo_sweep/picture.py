"""The README's picture of a report's page.

sae-train -m experiment=demo,demo_batchtopk,demo_matryoshka k=16,32,64 sweep_name=demo_sweep
sae-report outputs/demo_sweep --out outputs/demo_sweep/report
python benchmarks/demo_sweep/picture.py outputs/demo_sweep/report          writes page.png beside this file; pareto.png is the report's own
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent


def main(report: str) -> None:
    """Opens the page in Debian's Chromium, the pointer on a coder of the first plot."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1540, "height": 1260})
        page.goto((Path(report) / "report.html").resolve().as_uri())
        page.wait_for_selector(".scatterlayer .point")
        page.wait_for_timeout(1000)
        points = page.locator(".scatterlayer .point")
        points.nth(points.count() // 4).hover(force=True)
        page.wait_for_timeout(300)
        page.screenshot(path=HERE / "page.png")
        browser.close()
    shutil.copy(Path(report) / "pareto.png", HERE)


if __name__ == "__main__":
    main(*sys.argv[1:])
