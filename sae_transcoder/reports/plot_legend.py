"""The legends of the static plots, and the markers and line styles that they explain."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sae_transcoder.reports import plot_style
from sae_transcoder.reports.pareto import OPTIMAL
from sae_transcoder.reports.plot_data import PlottedCoder, Series

LETTERS = 64  # of a line, for the narrowest figure
MEAN_LABEL = "with whiskers: the mean of several seeds,\n± one standard deviation; small: each seed"
RING_LABEL = "\n".join(plot_style.in_lines(f"Pareto-optimal: {OPTIMAL}", LETTERS))


def line_styles(coders: Iterable[PlottedCoder]) -> dict[int, Any]:
    """A line style for each k; the same for all if there are more k than styles."""
    return {k: style for k, (style, _) in plot_style.k_dashes(coders).items()}


def ring_handle() -> Line2D:
    """The legend entry of the rings around Pareto-optimal points."""
    return Line2D([], [], linestyle="", marker="o", markersize=9, markerfacecolor="none", markeredgecolor="black", label=RING_LABEL)


def mean_handle() -> Any:
    """The legend entry of means over seeds."""
    marker = Line2D([], [], linestyle="", marker="o", markersize=4.5, color="#444444")
    whisker = LineCollection([], colors="#444444", linewidths=0.8)
    return ErrorbarContainer((marker, (), (whisker, whisker)), has_xerr=True, has_yerr=True, label=MEAN_LABEL)


def series_handles(
    coders: Sequence[PlottedCoder], label: Callable[[Series], str] = str, *, markers: bool = True, dashes: bool = False
) -> list[Line2D]:
    """A legend entry for each series. Its type shows in the marker or, without markers, in the width of the line; dashes: its kind in the line."""
    colours = plot_style.palette(coder.series for coder in coders)
    handles = []
    for series, colour in colours.items():
        look: dict[str, Any] = (
            {"marker": plot_style.marker(series)[0], "markersize": 5}
            if markers
            else {"linewidth": plot_style.LINE_WIDTHS.get(series.model_type, 1)}
        )
        look["linestyle"] = plot_style.dash(series)[0] if dashes else "-"
        handles.append(Line2D([], [], color=colour, label="\n".join(plot_style.in_lines(label(series), LETTERS)), **look))
    return handles


def k_handles(coders: Sequence[PlottedCoder]) -> list[Line2D]:
    """A legend entry for each k; none if all lines have one style."""
    styles = line_styles(coders)
    if len(styles) < 2 or len(set(map(str, styles.values()))) < 2:
        return []
    return [Line2D([], [], color="#444444", linestyle=style, label=f"k = {k}") for k, style in styles.items()]


def add_legend(figure: Figure, handles: Sequence[Any]) -> None:
    """Puts the legend below the panels, in as many columns as fit."""
    labels = [str(handle.get_label()).splitlines() for handle in handles]
    longest = max(len(line) for label in labels for line in label)
    columns = max(1, min(len(handles), int(figure.get_figwidth() / (0.4 + 0.068 * longest))))
    lines = max(sum(column) for column in np.array_split([len(label) for label in labels], columns))
    figure.set_figheight(figure.get_figheight() + 0.17 * lines)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=2.8)
