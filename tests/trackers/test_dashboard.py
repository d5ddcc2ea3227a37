"""What a person sees of sweeps with tracker=trackio: the dashboard that the command's own last line opens, in a real browser."""

import csv
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers import HANGS, forked
from helpers.ports import free_port
from helpers.programs import CHROMIUM

pytestmark = pytest.mark.slow

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
QUIET += ["--disable-sync"]

SHORT = ["experiment=demo", "max_steps=6", "log_every=1", "max_samples=64", "eval_samples=8", "batch_size=4", "max_seq_length=64"]
SHORT += ["expansion_factor=2", "threads=1", "tracker=trackio", "project=study"]

# For each run in a chart's legend: how many pixels of the chart have its colour, within what antialiasing changes.
PIXELS = """metric => {
    const plot = document.querySelector(`.plot-container[data-metric="${metric}"]`), canvas = plot?.querySelector("canvas")
    if (!canvas) return {}
    const image = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data, counts = {}
    for (const item of plot.querySelectorAll(".legend-item")) {
        const colour = getComputedStyle(item.querySelector(".legend-dot")).backgroundColor.match(/\\d+/g).map(Number)
        let count = 0
        for (let i = 0; i < image.length; i += 4)
            count += image[i + 3] > 200 && [0, 1, 2].every(c => Math.abs(image[i + c] - colour[c]) < 12)
        counts[item.textContent.trim()] = count
    }
    return counts
}"""


def sweep(folder: Path, *arguments: str, exit_code: int = 0) -> str:
    """Runs the training command in a process of its own; what it printed."""
    places = [f"save_dir={folder}/runs", f"cache_dir={folder}/cache"]
    words = ["-m", "sae_transcoder.train", *arguments, *SHORT, *places]
    done = forked.run(words, environment(folder), folder, timeout=HANGS)
    assert done.returncode == exit_code, done.stdout + done.stderr
    return done.stdout


def environment(folder: Path) -> dict[str, str]:
    """The environment without any tracker's settings, trackio's files in `folder`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRACKIO_", "WANDB_", "GRADIO_"))}
    return kept | {"TRACKIO_DIR": str(folder / "trackio"), "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}


@contextmanager
def served(folder: Path, command: str) -> Iterator[str]:
    """`trackio show ...` as the training printed it, on a free port, without opening a browser of its own; its address."""
    port = str(free_port())  # where it has been taken meanwhile, trackio tries the next
    env = environment(folder) | {"GRADIO_SERVER_PORT": port, "BROWSER": "true", "PYTHONUNBUFFERED": "1"}
    arguments = [sys.executable, "-m", "trackio.cli", *shlex.split(command)[1:]]
    with subprocess.Popen(arguments, env=env, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            said = []
            for line in process.stdout:
                said.append(line)
                if "with write access at: " in line:
                    yield line.split()[-1]
                    break
            else:
                pytest.fail("the dashboard did not start: " + "".join(said))
        finally:
            process.kill()


@contextmanager
def opened(address: str) -> Iterator[Any]:
    """The page in a headless browser that reaches nothing but this machine; fails where a script of the page does."""
    faults: list[str] = []
    sync_api.expect.set_options(timeout=30_000)  # milliseconds; two busy cores need more than its five seconds
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1500, "height": 2000})
        page.route(lambda url: not url.startswith(("http://127.0.0.1:", "blob:", "data:")), lambda route: route.abort())
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.set_default_timeout(60_000)
        page.goto(address)
        yield page
        browser.close()
    assert faults == []


def chart(page: Any, metric: str) -> Any:
    """The chart of a metric."""
    return page.locator(f'.plot-container[data-metric="{metric}"]')


def charted(page: Any, metric: str, folder: Path) -> list[dict[str, str]]:
    """The data of a metric's chart, as its download button gives them."""
    chart(page, metric).scroll_into_view_if_needed()  # only then it is drawn, and has something to give
    sync_api.expect(chart(page, metric).locator("canvas")).to_be_visible()
    with page.expect_download() as download:
        chart(page, metric).get_by_label("data as a CSV file").click()
    file = folder / "chart.csv"
    download.value.save_as(file)
    return list(csv.DictReader(file.open()))


def group_by(page: Any, field: str, groups: dict[str, set[str]]) -> None:
    """Chooses what the runs in the sidebar are grouped by, and checks that they then stand in these groups."""
    page.get_by_role("listbox", name="Group by").click()
    page.get_by_role("option", name=field, exact=True).click()
    for group in groups:
        sync_api.expect(page.locator(f'.run-group-label[title="{group}"]')).to_be_visible()
    shown = {part.locator(".run-group-label").inner_text(): set(names(part)) for part in page.locator(".run-group-section").all()}
    assert shown == groups


def names(part: Any) -> list[str]:
    """The runs that a part of the sidebar lists."""
    return part.locator(".run-name").all_inner_texts()


@pytest.mark.needs("chromium")
def test_the_trackio_dashboard_shows_the_runs_of_two_sweeps_by_group_with_the_numbers_of_metrics_jsonl(tmp_path: Path) -> None:
    printed = sweep(tmp_path, "-m", "model_type=sae,transcoder", "k=4,16", "group=my_sweep")
    # At such a rate the FVU is not a number from the second step on, which ends the run; it may not stop the page or enter a curve.
    sweep(tmp_path, "k=8", "lr=1e30", "group=too_fast", exit_code=1)
    rows = {
        file.parent.name: [json.loads(line) for line in file.read_text().splitlines()]
        for file in (tmp_path / "runs").rglob("metrics.jsonl")
    }
    (fast,) = (run for run in rows if "-k8-" in run)
    mine = rows.keys() - {fast}
    assert len(mine) == 4
    assert [row["step"] for row in rows[fast] if row["fvu/layers.2"] is not None] == [1]
    # {metric: {(run, step): number}}, of the numbers that there are.
    wanted: dict[str, dict[tuple[str, int], float]] = {}
    for run, lines in rows.items():
        for line in lines:
            for metric, value in line.items():
                if metric != "step" and value is not None:
                    wanted.setdefault(metric, {})[run, line["step"]] = value
    (show,) = {line for line in printed.splitlines() if line.startswith("trackio show ")}

    with served(tmp_path, show) as address, opened(address) as page:
        charts = page.locator(".plot-container")
        sync_api.expect(charts).to_have_count(len(wanted))
        assert {found.get_attribute("data-metric") for found in charts.all()} == wanted.keys()
        assert sorted(names(page.locator(".sidebar-sections"))) == sorted(rows)

        checked = {m: n for m, n in wanted.items() if not m.startswith("heldout/") or m.split("/")[1] in ("fvu", "ce_loss_score")}
        for metric, numbers in checked.items():
            # A bar chart, for one number per run, says no step: it is the last.
            shown = [((row["run"], int(row.get("step", 6))), float(row[metric])) for row in charted(page, metric, tmp_path)]
            assert sorted(shown) == sorted(numbers.items()), metric
        for metric in ("fvu/layers.2", "fvu/layers.2.mlp"):
            curves = sorted({run for run, _ in wanted[metric]} - {fast})
            chart(page, metric).scroll_into_view_if_needed()
            drawn = f"([metric, runs]) => {{ const pixels = ({PIXELS})(metric); return runs.every(run => pixels[run] > 100) }}"
            page.wait_for_function(drawn, arg=[metric, curves])

        group_by(page, "model_type", {kind: {run for run in rows if run.startswith(kind)} for kind in ("sae", "transcoder")})
        group_by(page, "layers", {"2": set(rows)})
        group_by(page, "Group", {"my_sweep": mine, "too_fast": {fast}})
        page.screenshot(path=tmp_path / "dashboard.png")
        page.locator(".run-group-header", has_text="my_sweep").get_by_role("checkbox").uncheck()
        sync_api.expect(chart(page, "fvu/layers.2.mlp")).to_have_count(0)
        assert {row["run"] for row in charted(page, "tokens", tmp_path)} == {fast}
