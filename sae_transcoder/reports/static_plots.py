"""The plots for a paper: Pareto fronts, training curves and densities, by matplotlib, as png and svg.

The same runs give the same bytes. Colour shows a coder's size, kind and setting, the marker its type and kind; the line's style its kind and
setting in Pareto plots, in others its k.
"""

import io
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from sae_transcoder.reports import plot_style
from sae_transcoder.reports.pareto import TRADEOFFS, Tradeoff, best_of_each_k, pareto_optimal, points_and_seeds
from sae_transcoder.reports.plot_data import PlottedCoder, Series, outline, thin_out
from sae_transcoder.reports.plot_legend import (
    add_legend,
    k_handles,
    line_styles,
    mean_handle,
    ring_handle,
    series_handles,
)

RC_PARAMS: Any = {
    "svg.hashsalt": "sae-report",  # else element ids are random
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
MOST_PANELS = 12
COLUMNS = 4
PANEL_SIZE = (2.9, 2.5)  # inches of one panel


def opacity(num_lines: int) -> float:
    """How opaque each line of a panel is."""
    return 0.9 if num_lines <= 24 else 0.35


def grid(names: Sequence[str], rows: int) -> tuple[Figure, dict[tuple[str, int], Axes]]:
    """A figure with `rows` panels one below the other for each name, and its axes {(name, row): axes}."""
    num_columns = min(len(names), COLUMNS)
    num_rows = -(-len(names) // num_columns) * rows
    figure = Figure(figsize=(max(5.0, num_columns * PANEL_SIZE[0]), num_rows * PANEL_SIZE[1] + 0.2), layout="constrained")
    axes = {}
    for i, name in enumerate(names):
        for row in range(rows):
            position = ((i // num_columns) * rows + row) * num_columns + i % num_columns + 1
            axes[name, row] = figure.add_subplot(num_rows, num_columns, position)
        axes[name, 0].set_title(wrapped(name))
    return figure, axes


def wrapped(name: str) -> str:
    """The name, in two lines if it is long."""
    middle = name.find(".", len(name) // 2)
    return name if len(name) <= 34 or middle < 0 else f"{name[: middle + 1]}\n{name[middle + 1 :]}"


def decimal(value: float, _: object = None) -> str:
    """A tick's number, without powers of ten."""
    return f"{value:.3g}"


def log_axis(axis: Any, values: Sequence[float]) -> None:
    """Puts plain numbers at a logarithmic axis."""
    axis.set_major_locator(FixedLocator(plot_style.log_ticks(values)))
    axis.set_major_formatter(FuncFormatter(decimal))
    axis.set_minor_formatter(NullFormatter())


def hookpoint_panels(coders: Sequence[PlottedCoder], rows: int = 1) -> tuple[Figure, dict[tuple[str, int], Axes]]:
    """A figure with empty panels for the coders' hookpoints, which says if some are left out; see `grid`."""
    names = plot_style.panels(coders)
    drawn = plot_style.evenly_spaced(names, MOST_PANELS)
    figure, axes = grid(drawn, rows)
    if len(drawn) < len(names):
        text = f"{len(drawn)} of {len(names)} hookpoints, evenly taken; the others are in report.html"
        figure.suptitle(text, fontsize=8, color="#555555")
    return figure, axes


def draw_pareto(coders: Sequence[PlottedCoder]) -> Figure | None:
    """L0 against held-out FVU and CE loss score; None where no coder has such a point."""
    tradeoffs = [tradeoff for tradeoff in TRADEOFFS if any(map(tradeoff.is_shown, coders))]
    shown = [coder for coder in coders if any(tradeoff.plottable([coder]) for tradeoff in tradeoffs)]
    if not shown:
        return None
    colours = plot_style.palette(coder.series for coder in shown)
    figure, axes = hookpoint_panels(shown, len(tradeoffs))
    for (name, row), axis in axes.items():
        in_panel = [coder for coder in shown if coder.panel == name]
        plottable = tradeoffs[row].plottable(in_panel)
        set_l0_axis(axis, plottable or in_panel)
        axis.set_ylabel(tradeoffs[row].label)
        axis.set_xlabel(plot_style.L0_LABEL)
        if plottable:
            draw_points(axis, plottable, tradeoffs[row], colours)
        reason = textwrap.fill(tradeoffs[row].reason(in_panel), 46)
        if reason or not plottable:
            place = (0.02, 0.02, "left", "bottom") if plottable else (0.5, 0.5, "center", "center")
            text: dict[str, Any] = {"fontsize": 6 if reason else 9, "color": "#555555", "zorder": 5, "transform": axis.transAxes}
            axis.text(*place[:2], reason or "none was measured", ha=place[2], va=place[3], **text)
    add_legend(
        figure,
        [*series_handles(shown, dashes=True), ring_handle(), *([mean_handle()] if any(coder.seeds for coder in shown) else [])],
    )
    return figure


def set_l0_axis(axis: Axes, coders: Sequence[PlottedCoder]) -> None:
    """Makes the x axis a logarithmic L0 axis with the coders' k as ticks, plain numbers where they aim at none."""
    axis.set_xscale("log")
    axis.set_xlim(plot_style.l0_range(coders))
    if ticks := plot_style.k_ticks(coders):
        axis.set_xticks(ticks, [f"{k:,}" for k in ticks])
    else:
        log_axis(axis.xaxis, [coder.l0 for coder in coders if coder.l0 > 0])
    axis.xaxis.set_minor_locator(NullLocator())


def draw_points(axis: Axes, coders: Sequence[PlottedCoder], tradeoff: Tradeoff, colours: dict[Series, str]) -> None:
    """Draws all points, a line through the best of each series, a ring around each Pareto-optimal point; means over seeds with whiskers, and
    small and pale what they are the means of."""

    def xy(plotted: Sequence[PlottedCoder]) -> tuple[list[float], list[float]]:
        return [coder.l0 for coder in plotted], [tradeoff.metric(coder) for coder in plotted]

    points, seeds = points_and_seeds(coders)
    for series in sorted({coder.series for coder in coders}):
        in_series = [coder for coder in points if coder.series == series]
        line = {"color": colours[series], "linestyle": plot_style.dash(series)[0], "linewidth": 1.2}
        axis.plot(*xy(best_of_each_k(in_series, tradeoff.cost)), zorder=2, **line)
        look: dict[str, Any] = {
            "marker": plot_style.marker(series)[0],
            "linestyle": "",
            "mew": 0,
            "color": colours[series],
            "zorder": 3,
        }
        axis.plot(*xy(in_series), ms=4.5, **look)
        if pale := [coder for coder in seeds if coder.series == series]:
            axis.plot(*xy(pale), ms=2.5, alpha=plot_style.SEED_OPACITY, **look)
        if means := [coder for coder in in_series if coder.seeds]:
            l0_deviations, deviations = zip(*map(tradeoff.deviations, means), strict=True)
            axis.errorbar(
                *xy(means), deviations, l0_deviations, fmt="none", ecolor=colours[series], elinewidth=0.8, capsize=2, zorder=2
            )
    axis.plot(*xy(pareto_optimal(points, tradeoff)), "o", markersize=9, mfc="none", mec="black", mew=0.8, zorder=4)
    values = [tradeoff.metric(coder) for coder in coders]
    axis.margins(y=0.12)
    if plot_style.is_logarithmic(values):
        axis.set_yscale("log")
        log_axis(axis.yaxis, values)
    else:
        axis.yaxis.set_major_locator(MaxNLocator(6, min_n_ticks=3, steps=[1, 2, 2.5, 5, 10]))


def draw_curves(coders: Sequence[PlottedCoder]) -> Figure | None:
    """Training FVU against tokens; None where there is no curve."""
    shown = [coder for coder in coders if coder.curve.shape[1]]
    if not shown:
        return None
    colours, styles = plot_style.palette(coder.series for coder in shown), line_styles(shown)
    figure, axes = hookpoint_panels(shown)
    most = plot_style.points_per_curve(len(shown))
    for (name, _), axis in axes.items():
        in_panel = [coder for coder in shown if coder.panel == name]
        for coder in in_panel:
            line = {"color": colours[coder.series], "linestyle": styles[coder.k], "linewidth": 1, "alpha": opacity(len(in_panel))}
            axis.plot(*thin_out(coder.curve, most), **line)
            axis.plot(*coder.curve[:, -1:], color=colours[coder.series], marker=plot_style.marker(coder.series)[0], markersize=4)
        if values := plot_style.positive_fvus(in_panel):
            axis.set_yscale("log")
            log_axis(axis.yaxis, values)
            axis.yaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: f"{tokens / 1e6:g}"))
        axis.set_xlabel("training tokens (millions)")
        axis.set_ylabel(plot_style.TRAINING_FVU_LABEL)
    add_legend(figure, [*series_handles(shown), *k_handles(shown)])
    return figure


def draw_densities(coders: Sequence[PlottedCoder]) -> Figure | None:
    """How often latents fire; None where no coder has densities."""
    shown = [coder for coder in coders if coder.densities]
    if not shown:
        return None
    colours, styles = plot_style.palette(coder.series for coder in shown), line_styles(shown)
    figure, axes = hookpoint_panels(shown)
    for (name, _), axis in axes.items():
        in_panel = [coder for coder in shown if coder.panel == name]
        for coder in in_panel:
            if coder.densities and len(coder.densities.counts):
                line = {
                    "color": colours[coder.series],
                    "linestyle": styles[coder.k],
                    "linewidth": plot_style.LINE_WIDTHS.get(coder.model_type, 1),
                }
                axis.plot(*outline(coder.densities), alpha=opacity(len(in_panel)), **line)
        axis.set_ylim(bottom=0)
        axis.set_xlabel(plot_style.DENSITY_LABEL)
        axis.set_ylabel(plot_style.LATENTS_LABEL)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))

    def label(series: Series) -> str:
        in_series = [coder.densities for coder in shown if coder.series == series and coder.densities]
        never, total = sum(histogram.never for histogram in in_series), sum(histogram.total for histogram in in_series)
        return f"{series} (never fired: {never:,} of {total:,})"

    add_legend(figure, [*series_handles(shown, label, markers=False), *k_handles(shown)])
    return figure


PLOTS = {"pareto": draw_pareto, "curves": draw_curves, "densities": draw_densities}


def draw_files(coders: Sequence[PlottedCoder]) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of each plot that has data, as png and as svg."""
    with matplotlib.rc_context(RC_PARAMS):
        for name, draw in PLOTS.items():
            if figure := draw(coders):
                for kind, options in {"png": {"dpi": 200}, "svg": {"metadata": {"Date": None}}}.items():
                    content = io.BytesIO()
                    figure.savefig(content, format=kind, **options)  # type: ignore[arg-type]
                    yield f"{name}.{kind}", content.getvalue()
