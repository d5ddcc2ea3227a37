"""The legends and captions of the plots: what they say is so, and long names of series leave the panels their room."""

from pathlib import Path
from typing import Any

import pytest

from helpers.made_up_runs import grid
from sae_transcoder.reports import interactive_plots, page, pareto, plot_data, plot_legend, static_plots
from sae_transcoder.run_store import run_records

OVER_PANELS = """id => {
    const plot = document.getElementById(id), {left: x, top: y} = plot.getBoundingClientRect();
    const areas = Object.values(plot._fullLayout._plots).map(({xaxis, yaxis}) => [
        x + xaxis._offset, x + xaxis._offset + xaxis._length, y + yaxis._offset, y + yaxis._offset + yaxis._length]);
    const texts = [...plot.querySelectorAll("text[class^=y][class$=title], .legendtext")];
    return texts.filter(text => {
        const box = text.getBoundingClientRect();
        return box.right > innerWidth || areas.some(([left, right, top, bottom]) =>
            box.left < right - 1 && left < box.right - 1 && box.top < bottom - 1 && top < box.bottom - 1);
    }).map(text => text.textContent);
}"""


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[run_records.Record]:
    """Runs that differ in several settings, which the names of their series hold, at two hookpoints each."""
    folder = tmp_path_factory.mktemp("runs")
    for i in range(3):
        settings = {"dataset_name": [f"corpora/part_{i}.jsonl"], "lr": [0.001 * (i + 1)], "max_samples": [1000 + i]}
        grid(folder, lines=10, k=[16, 64], layers=[[6, 12]], **settings)
    return run_records.read_all([folder], print)


def test_the_captions_say_which_points_have_rings(records: list[run_records.Record]) -> None:
    said = "FVU of 1 at most, and no point of the panel has a lower FVU (higher CE score) at an L0 as low, within 2 %"
    assert plot_legend.RING_LABEL.replace("\n", " ") == f"Pareto-optimal: {said}"
    drawn = interactive_plots.draw_pareto(list(enumerate(plot_data.plotted_coders(records, print))))
    assert drawn is not None
    assert f"Rings, Pareto-optimal: {said}." in drawn[1]
    assert pareto.pareto_mask([(32.0, 0.2), (32.5, 0.1), (34.0, 0.05)]) == [False, True, True]


def test_long_names_of_series_are_in_the_picture_whole(records: list[run_records.Record]) -> None:
    coders = plot_data.plotted_coders(records, print)
    assert max(len(str(coder.series)) for coder in coders) > plot_legend.LETTERS
    for draw in static_plots.PLOTS.values():
        figure = draw(coders)
        assert figure is not None
        figure.canvas.draw()
        box, (width, height) = figure.legends[0].get_window_extent(), figure.get_size_inches() * figure.dpi
        assert 0 <= box.x0 < box.x1 <= width
        assert 0 <= box.y0 < box.y1 <= height
        panels_height = sum(axis.get_window_extent().height for axis in figure.axes[: len(figure.axes) // 2])
        assert panels_height / len(figure.axes) * 2 > 100, "pixels of a panel"


@pytest.mark.slow
@pytest.mark.needs("chromium")
@pytest.mark.parametrize("width", [720, 1000, 1300])
def test_titles_of_axes_and_the_legend_are_not_over_the_panels(
    browser: Any, records: list[run_records.Record], tmp_path: Path, width: int
) -> None:
    (tmp_path / "report.html").write_text(page.report_page(records, plot_data.plotted_coders(records, print)))
    shown = browser.new_page(viewport={"width": width, "height": 900})
    shown.goto((tmp_path / "report.html").as_uri())
    shown.wait_for_selector("#densities .legendtext")
    shown.wait_for_timeout(500)
    for picture in ("pareto", "curves", "densities"):
        assert shown.evaluate(OVER_PANELS, picture) == []
        sizes = shown.evaluate(
            "id => Object.values(document.getElementById(id)._fullLayout._plots).map(p => p.xaxis._length)", picture
        )
        assert min(sizes) > 200
    shown.close()
