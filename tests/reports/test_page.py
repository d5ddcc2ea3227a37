"""report.html in a browser: it opens without a network, every panel is there, and the pointer tells what a point is."""

from pathlib import Path

import pytest

from helpers.made_up_runs import config, grid, write_run
from sae_transcoder.reports import interactive_plots, page, plot_data
from sae_transcoder.run_store import run_records
from sae_transcoder.run_store.status import State

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
pytestmark = pytest.mark.needs("chromium")


class Opened:
    """A page in the browser, and all that it asked for and complained of."""

    def __init__(self, browser: "sync_api.Browser", path: Path, width: int = 1300):
        self.url, self.requests, self.complaints = path.as_uri(), [], []
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(self.url)
        self.page.wait_for_selector("#curves .scatterlayer .trace", state="attached")

    def titles(self, picture: str) -> list[str]:
        """The panels' titles in a picture."""
        return self.page.locator(f"#{picture} .annotation-text").all_text_contents()

    def facts(self) -> dict[str, str]:
        """What the tooltip says."""
        self.page.wait_for_selector("#tip", state="visible")
        return dict(row.split("\t") for row in self.page.locator("#tip").inner_text().splitlines())

    def hover(self, picture: str, x: float, y: float, panel: str = "") -> dict[str, str]:
        """Moves the pointer to a point of the data of a panel ("", "2", ...); what the tooltip says then."""
        self.page.locator(f"#{picture}").scroll_into_view_if_needed()
        place = self.page.evaluate(
            """([id, x, y, panel]) => {
                const plot = document.getElementById(id), box = plot.getBoundingClientRect(), layout = plot._fullLayout;
                const across = layout["xaxis" + panel], up = layout["yaxis" + panel];
                return [box.left + across._offset + across.d2p(x), box.top + up._offset + up.d2p(y)];
            }""",
            [picture, x, y, panel],
        )
        self.page.mouse.move(2, 2)
        self.page.wait_for_selector("#tip", state="hidden")
        self.page.mouse.move(*place)
        return self.facts()


@pytest.fixture(scope="module")
def coders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[plot_data.PlottedCoder]]:
    """The page of two types, two k, two widths, and what it shows."""
    folder = tmp_path_factory.mktemp("sweep")
    grid(folder / "runs", lines=30, model_type=["sae", "transcoder"], k=[16, 64], expansion_factor=[8, 32])
    write_run(folder / "runs" / "<script>alert(1)</script>".replace("/", "_"), config(k=32), State.failed)
    records = run_records.read_all([folder / "runs"], print)
    plotted = plot_data.plotted_coders(records, print)
    (folder / "report.html").write_text(page.report_page(records, plotted))
    return folder / "report.html", plotted


@pytest.fixture(scope="module")
def opened(browser: "sync_api.Browser", coders: tuple[Path, list[plot_data.PlottedCoder]]) -> Opened:
    return Opened(browser, coders[0])


def test_it_opens_offline_and_without_complaint(opened: Opened) -> None:
    opened.page.wait_for_timeout(300)
    assert opened.requests == [opened.url]
    assert opened.complaints == []


def test_it_offers_no_upload(opened: Opened) -> None:
    buttons = opened.page.evaluate("[...document.querySelectorAll('.modebar-btn')].map(button => button.dataset.title)")
    assert "Download plot" in buttons
    assert not [button for button in buttons if "Share" in button or "loud" in button]


def test_every_panel_is_there_with_its_points(opened: Opened) -> None:
    for picture in ("pareto", "curves", "densities"):
        assert opened.titles(picture) == ["layers.6", "layers.6.mlp"]
    assert (
        opened.page.locator("#pareto .subplot.xy, #pareto .subplot.x2y2, #pareto .subplot.x3y3, #pareto .subplot.x4y4").count() == 4
    )
    # Four coders a panel and two Pareto-optimal at least.
    assert opened.page.locator("#pareto path.point").count() >= 4 * (4 + 2)
    legend = opened.page.locator("#pareto .legendtext").all_text_contents()
    assert legend == [
        "sae, topk, 512 latents", "transcoder, topk, 512 latents", "sae, topk, 2,048 latents", "transcoder, topk, 2,048 latents", "Pareto-optimal"
    ]  # fmt: skip
    ticks = opened.page.locator("#pareto .xaxislayer-above text").all_text_contents()
    assert ticks == ["16", "64"] * 4


def test_the_metrics_of_the_table_stand_before_the_settings_that_a_narrow_window_may_cut_off(opened: Opened) -> None:
    heads = opened.page.locator(".runs th").all_inner_texts()
    assert heads[:8] == ["run", "state", "k", "L0", "train FVU", "held-out FVU", "CE score", "never fired"]
    assert heads.index("model_type") < heads.index("step")


def test_the_pointer_at_a_point_tells_its_run(opened: Opened, coders: tuple[Path, list[plot_data.PlottedCoder]]) -> None:
    for coder in coders[1]:
        if coder.l0 > 0:
            told = opened.hover("pareto", coder.l0, coder.fvu, "" if coder.model_type == "sae" else "2")
            assert told == dict(coder.facts)
            assert told["k"] == str(coder.k)
            assert told["latents"] == f"{coder.size.latents:,}"
            assert told["expansion_factor"] == str(coder.size.latents // 64)
            assert told["held-out FVU"] == f"{coder.fvu:.4f}"
    opened.page.mouse.move(2, 2)
    opened.page.wait_for_selector("#tip", state="hidden")


def test_a_click_at_a_coder_leads_to_its_latents(browser: "sync_api.Browser", tmp_path: Path) -> None:
    grid(tmp_path / "runs", lines=3, model_type=["sae"], k=[16, 64])
    records = run_records.read_all([tmp_path / "runs"], print)
    plotted = plot_data.plotted_coders(records, print)
    one, other = plotted
    (tmp_path / "latents.html").write_text("<title>latents</title>")
    address = "latents.html#/</script>/" + one.place[1]
    (tmp_path / "report.html").write_text(page.report_page(records, plotted, latents={one.place: address}))
    opened = Opened(browser, tmp_path / "report.html")
    assert "click" not in opened.hover("pareto", other.l0, other.fvu)
    assert opened.hover("pareto", one.l0, one.fvu)["click"] == "shows its latents"
    opened.page.mouse.down()
    opened.page.mouse.up()
    opened.page.wait_for_url((tmp_path / "latents.html").as_uri() + "**")
    assert opened.page.evaluate("decodeURIComponent(location.hash)") == "#/</script>/" + one.place[1]
    assert opened.complaints == []


def test_the_pointer_at_a_line_tells_its_run(opened: Opened, coders: tuple[Path, list[plot_data.PlottedCoder]]) -> None:
    coder = min((c for c in coders[1] if c.model_type == "transcoder"), key=lambda c: c.curve[1, -1])  # nothing lies near its end
    assert opened.hover("curves", *coder.curve[:, -3].tolist(), "2") == dict(coder.facts)
    widest = max((c for c in coders[1] if c.model_type == "sae" and c.densities), key=lambda c: -c.densities.first)
    x, y = plot_data.outline(widest.densities)[:, 1].tolist()
    assert opened.hover("densities", x, y)["latents"] == f"{widest.size.latents:,}"


def test_names_are_text_and_no_markup(opened: Opened) -> None:
    assert "<script>alert(1)<_script>" in opened.page.locator(".runs").inner_text()
    assert opened.page.locator("td.failed").inner_text() == "failed"
    assert opened.page.locator(".runs tbody tr").count() == 9


def test_a_page_of_curves_alone(browser: "sync_api.Browser", tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", config(layers=[1, 2]), lines=5, evaluated=False)
    records = run_records.read_all([tmp_path / "runs"], print)
    (tmp_path / "report.html").write_text(page.report_page(records, plot_data.plotted_coders(records, print)))
    opened = Opened(browser, tmp_path / "report.html")
    assert opened.titles("curves") == ["layers.1", "layers.2"]
    assert opened.page.locator("#pareto, #densities").count() == 0
    assert opened.complaints == []


def test_curves_of_many_runs_are_one_trace_for_a_series_and_k(tmp_path: Path) -> None:
    grid(tmp_path, lines=400, model_type=["sae", "transcoder"], k=[8, 16], lr=[i / 1000 for i in range(1, 8)])
    coders = plot_data.plotted_coders(run_records.read_all([tmp_path], print), print)
    made = interactive_plots.draw_curves(list(enumerate(coders)))
    assert made is not None
    traces = [trace for trace in made[0].data if trace.customdata is not None]
    assert len(traces) == 2 * 2
    for trace in traces:
        assert len(trace.x) == len(trace.y) == len(trace.customdata) == 7 * (300 + 1)
        assert len(set(trace.customdata)) == 7


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a sweep over types, k and rates, at two hookpoints each."""
    folder = tmp_path_factory.mktemp("mixed")
    grid(folder / "runs", lines=10, model_type=["sae", "transcoder"], k=[16, 64], lr=[1e-3, 3e-3], layers=[[6, 12]])
    records = run_records.read_all([folder / "runs"], print)
    (folder / "report.html").write_text(page.report_page(records, plot_data.plotted_coders(records, print)))
    return folder / "report.html"


LOOKS = """id => document.getElementById(id)._fullData.filter(trace => trace.mode === "lines" && trace.x.length > 1).map(
    trace => [trace.name, trace.line.color + " " + trace.line.dash + (id === "pareto" ? "" : " " + trace.line.width)])"""


def test_series_are_told_apart_by_colour_and_dash_and_named_by_what_differs(browser: "sync_api.Browser", mixed: Path) -> None:
    opened = Opened(browser, mixed)
    for picture in ("pareto", "curves", "densities"):
        looks: dict[str, set[str]] = {}
        for name, look in opened.page.evaluate(LOOKS, picture):
            looks.setdefault(name, set()).add(look)
        assert set(looks) == {f"{kind}, topk, 512 latents, lr={lr}" for kind in ("sae", "transcoder") for lr in ("0.001", "0.003")}
        assert len(set().union(*looks.values())) == sum(map(len, looks.values())) == (4 if picture == "pareto" else 4 * 2)
        legend = opened.page.locator(f"#{picture} .legendtext").all_text_contents()
        assert set(legend[:4]) == set(looks)
        assert legend[4:] == (["Pareto-optimal"] if picture == "pareto" else ["k = 16", "k = 64"])


WIDTHS = """id => Object.entries(document.getElementById(id)._fullLayout).filter(([name]) => name.startsWith("xaxis")).map(
    ([_, axis]) => axis._length)"""
ARRANGED = """narrow => [...document.querySelectorAll(".js-plotly-plot")].every(
    plot => plot._fullLayout.legend.orientation === (narrow ? "h" : "v") && plot.querySelector(".legendtext"))"""
BOXES = """id => [...document.querySelectorAll(`#${id} :is(.legendtext, .annotation-text, .xtitle, .ytitle)`)].map(
    text => { const box = text.getBoundingClientRect(); return [text.textContent, box.left, box.top, box.right, box.bottom]; })"""


@pytest.mark.parametrize("width", [360, 1300])
def test_labels_and_legend_lie_on_the_screen_and_not_on_each_other(browser: "sync_api.Browser", mixed: Path, width: int) -> None:
    opened = Opened(browser, mixed, width)
    opened.page.wait_for_function(ARRANGED, arg=width == 360)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    for picture in ("pareto", "curves", "densities"):
        boxes = opened.page.evaluate(BOXES, picture)
        assert len(boxes) > 10
        for i, (text, left, top, right, bottom) in enumerate(boxes):
            assert 0 <= left < right <= width, text
            assert bottom - top > 8 or right - left > 8, text
            for other, x, y, end, low in boxes[:i]:
                assert not (left < end - 1 and x < right - 1 and top < low - 1 and y < bottom - 1), (picture, text, other)
        assert min(opened.page.evaluate(WIDTHS, picture)) > 200
    assert opened.complaints == []
