"""The plots of report.html: plotly figures that stay quick with a thousand runs.

In a panel, all coders of a series are one trace. The `customdata` of a point is its coder's index, by which the page finds the facts
for the tooltip.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from sae_transcoder.metric_names import THRESHOLD_QUANTILES
from sae_transcoder.reports import plot_style
from sae_transcoder.reports.interactive_panels import RING, Numbered, Panels
from sae_transcoder.reports.pareto import OPTIMAL, TRADEOFFS, Tradeoff, best_of_each_k, pareto_optimal, points_and_seeds
from sae_transcoder.reports.plot_data import PlottedCoder, outline, thin_out


def draw_pareto(coders: Numbered) -> tuple[go.Figure, str] | None:
    """L0 against held-out FVU and CE loss score; None where no coder has such a point."""
    tradeoffs = [tradeoff for tradeoff in TRADEOFFS if any(tradeoff.is_shown(coder) for _, coder in coders)]
    shown = [(i, coder) for i, coder in coders if any(tradeoff.plottable([coder]) for tradeoff in tradeoffs)]
    if not shown:
        return None
    drawing = Panels(shown, coders, len(tradeoffs))
    for name in drawing.names:
        for row, tradeoff in enumerate(tradeoffs):
            position = drawing.position(name, row)
            in_panel = [(i, coder) for i, coder in shown if coder.panel == name and tradeoff.plottable([coder])]
            draw_points(drawing, position, in_panel, tradeoff)
            ticks = plot_style.k_ticks(coder for _, coder in in_panel)
            ends = np.log10(plot_style.l0_range([coder for _, coder in in_panel])).tolist()
            at_ticks = dict(type="log", tickvals=ticks, ticktext=[f"{k:,}" for k in ticks])
            l0_axis = (at_ticks if ticks else log_axis([coder.l0 for _, coder in in_panel])) | {"range": ends}
            drawing.figure.update_xaxes(title_text=plot_style.L0_LABEL, **l0_axis, **position)
            values = [tradeoff.metric(coder) for _, coder in in_panel]
            scale = log_axis(values) if plot_style.is_logarithmic(values) else {}
            drawing.figure.update_yaxes(**scale, title_text=tradeoff.label, **position)
    missing = [tradeoff.reason([coder for _, coder in coders]) for tradeoff in tradeoffs]
    means = " With whiskers: the mean of several seeds ± one standard deviation; small and pale: each seed."
    return drawing.arrange(), drawing.note(
        f"Every coder is a point; a line joins the best of each k. Rings, Pareto-optimal: {OPTIMAL}."
        + "".join(f" {reason}." for reason in missing if reason)
        + (means if any(coder.seeds for _, coder in shown) else "")
    )


def draw_points(drawing: Panels, position: dict[str, int], coders: Numbered, tradeoff: Tradeoff) -> None:
    """Adds the traces of one Pareto panel: for each series its points and a line through the best, and rings; means over seeds with whiskers,
    and small and pale what they are the means of."""

    def xy(plotted: Iterable[PlottedCoder]) -> dict[str, list[float]]:
        points = [(coder.l0, tradeoff.metric(coder)) for coder in plotted]
        return {"x": [x for x, _ in points], "y": [y for _, y in points]}

    counted, seeds = points_and_seeds([coder for _, coder in coders])
    averaged = {coder.place for coder in seeds}
    for series, members, colour in drawing.by_series(coders):
        points, pale = ([each for each in members if (each[1].place in averaged) is small] for small in (False, True))
        line = {"color": colour, "dash": plot_style.dash(series)[1], "width": 1.5}
        best = best_of_each_k([coder for _, coder in points], tradeoff.cost)
        drawing.add(position, series, **xy(best), mode="lines", line=line, listed=False)
        for drawn, size, opacity in ((points, 8, 1.0), (pale, 5, plot_style.SEED_OPACITY)):
            if drawn:
                marker = {"color": colour, "symbol": plot_style.marker(series)[1], "size": size, "opacity": opacity}
                drawing.add(
                    position, series, **xy(coder for _, coder in drawn), mode="markers", marker=marker, customdata=[i for i, _ in drawn],
                    **whiskers([coder for _, coder in drawn], tradeoff),
                )  # fmt: skip
    ring = {"symbol": "circle-open", "size": 14, "color": "black", "line": {"width": 1}}
    drawing.add(position, RING, **xy(pareto_optimal(counted, tradeoff)), mode="markers", marker=ring)


def whiskers(coders: Sequence[PlottedCoder], tradeoff: Tradeoff) -> dict[str, Any]:
    """The error bars of a trace, if any of its points is a mean over seeds."""
    if not any(coder.seeds for coder in coders):
        return {}
    by_axis = zip(*map(tradeoff.deviations, coders), strict=True)
    return {
        name: {"array": list(values), "thickness": 1, "width": 3}
        for name, values in zip(("error_x", "error_y"), by_axis, strict=True)
    }


def log_axis(values: Sequence[float]) -> dict[str, Any]:
    """A logarithmic axis with plain numbers at its ticks."""
    ticks = plot_style.log_ticks(values) if values else []
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:.3g}" for tick in ticks]}


def draw_curves(coders: Numbered) -> tuple[go.Figure, str] | None:
    """Training FVU against tokens; None where there is no curve."""
    shown = [(i, coder) for i, coder in coders if coder.curve.shape[1]]
    if not shown:
        return None
    most = plot_style.points_per_curve(len(shown))
    drawing = Panels(shown, coders)
    for name in drawing.names:
        position = drawing.add_lines(name, shown, lambda coder: thin_out(coder.curve, most))
        values = plot_style.positive_fvus(coder for _, coder in shown if coder.panel == name)
        drawing.figure.update_xaxes(title_text="training tokens", **position)
        drawing.figure.update_yaxes(**log_axis(values), title_text=plot_style.TRAINING_FVU_LABEL, **position)
    longest = max(min(coder.curve.shape[1], most) for _, coder in shown)
    return drawing.arrange(), drawing.note(f"A line for each coder, of at most {longest} points, evenly taken.")


def draw_densities(coders: Numbered) -> tuple[go.Figure, str] | None:
    """How often latents fire; None where no coder has densities."""
    shown = [(i, coder) for i, coder in coders if coder.densities]
    if not shown:
        return None
    drawing = Panels(shown, coders)
    for name in drawing.names:
        position = drawing.add_lines(name, shown, density_line)
        drawing.figure.update_xaxes(title_text=plot_style.DENSITY_LABEL, **position)
        drawing.figure.update_yaxes(title_text=plot_style.LATENTS_LABEL, rangemode="tozero", **position)
    return drawing.arrange(), drawing.note(
        "A step line for each coder; latents that never fired are not in it, their share is in the tooltip."
    )


def density_line(coder: PlottedCoder) -> np.ndarray:
    """A coder's histogram as a line; empty if no latent fired."""
    return outline(coder.densities) if coder.densities and len(coder.densities.counts) else np.zeros((2, 0))


def draw_levels(coders: Numbered) -> tuple[go.Figure, str] | None:
    """The FVU of each nested dictionary of Matryoshka coders; None where there are none."""
    shown = [(i, coder) for i, coder in coders if coder.levels]
    if not shown:
        return None
    drawing = Panels(shown, coders)
    for name in drawing.names:
        position = drawing.add_lines(name, shown, level_line, markers=True)
        in_panel = [coder for _, coder in shown if coder.panel == name]
        widths = sorted({level.width for coder in in_panel for level in coder.levels})
        drawing.figure.update_xaxes(
            title_text="first latents", type="log", tickvals=widths, ticktext=[f"{width:,}" for width in widths], **position
        )
        drawing.figure.update_yaxes(title_text="FVU, held out", rangemode="tozero", **position)
    return drawing.arrange(), drawing.note("A line for each coder: the FVU of what its first latents reconstruct by themselves.")


def level_line(coder: PlottedCoder) -> np.ndarray:
    """[2, n]: the width and FVU of a coder's levels."""
    return np.array([[level.width, level.fvu] for level in coder.levels]).T


def draw_thresholds(coders: Numbered) -> tuple[go.Figure, str] | None:
    """How the thresholds of JumpReLU coders are distributed; None where no coder has a threshold for each latent."""
    shown = [(i, coder) for i, coder in coders if THRESHOLD_QUANTILES.keys() <= coder.thresholds.keys()]
    if not shown:
        return None
    drawing = Panels(shown, coders)
    for name in drawing.names:
        position = drawing.add_lines(name, shown, threshold_line, markers=True)
        drawing.figure.update_xaxes(title_text="threshold", **position)
        drawing.figure.update_yaxes(title_text="latents below (%)", **position)
    return drawing.arrange(), drawing.note("A line for each coder, through the quantiles of its thresholds.")


def threshold_line(coder: PlottedCoder) -> np.ndarray:
    """[2, n]: the quantiles of a coder's thresholds, and the percentage of latents below each."""
    return np.array([[coder.thresholds[name], 100 * share] for name, share in THRESHOLD_QUANTILES.items()]).T


PLOTS: dict[str, Callable[[Numbered], tuple[go.Figure, str] | None]] = {
    "pareto": draw_pareto,
    "curves": draw_curves,
    "densities": draw_densities,
    "levels": draw_levels,
    "thresholds": draw_thresholds,
}
