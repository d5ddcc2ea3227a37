"""The pictures of report.html: plotly figures that stay quick with a thousand runs.

Of all coders of a width and a type in a panel one trace is made. A point's `customdata` is its coder's number, from which the page
tells what is known of it.
"""

import html
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sae_transcoder.reports.plot_data import (
    TRADES,
    Coder,
    Trade,
    Width,
    best_line,
    logarithmic,
    optimal,
    outline,
    panels,
    points_each,
    reach,
    spread,
    thinned,
    ticks,
)
from sae_transcoder.reports.static_plots import palette

COLUMNS = 3
MOST_PANELS = 60
HEIGHT = 310  # pixels of a panel
SYMBOLS = {"sae": "circle", "transcoder": "diamond"}
RING = "Pareto-optimal"
LINES = {"sae": "solid", "transcoder": "dash"}


Numbered = Sequence[tuple[int, Coder]]


class Panels:
    """A figure with panels for hookpoints, `rows` for each, and a legend that has each series once."""

    def __init__(self, coders: Numbered, rows: int):
        every = panels(coder for _, coder in coders)
        self.names = spread(every, MOST_PANELS)
        self.left_out = len(every) - len(self.names)
        self.across = min(COLUMNS, len(self.names))
        self.rows = rows
        down = -(-len(self.names) // self.across) * rows
        titles = [""] * (down * self.across)
        for i, name in enumerate(self.names):
            titles[(i // self.across) * rows * self.across + i % self.across] = html.escape(name)
        gap = min(95 / (HEIGHT * down), 0.9 / max(1, down - 1))
        self.figure = make_subplots(down, self.across, subplot_titles=titles, horizontal_spacing=0.07, vertical_spacing=gap)
        self.figure.update_layout(
            height=HEIGHT * down + 120, template="plotly_white", hovermode="closest", margin=dict(l=60, r=10, t=40, b=50),
            legend=dict(itemsizing="constant"), font=dict(family="system-ui, sans-serif", size=12),
        )  # fmt: skip
        self.figure.update_annotations(font_size=13)
        self.figure.update_xaxes(showline=True, linecolor="#999", ticks="outside")
        self.figure.update_yaxes(showline=True, linecolor="#999", ticks="outside")
        self.colours = palette(coder.width for _, coder in coders)
        ordered = [*sorted({coder.series for _, coder in coders}), RING]
        self.ranks: dict[Any, int] = {series: 1 + i for i, series in enumerate(ordered)}
        self.in_legend: set[Any] = set()

    def place(self, name: str, row: int) -> dict[str, int]:
        """Where a panel is."""
        i = self.names.index(name)
        return {"row": (i // self.across) * self.rows + row + 1, "col": i % self.across + 1}

    def add(self, place: dict[str, int], series: tuple[Width, str] | str, label: str, **trace: Any) -> None:
        """Adds a trace of a series; what has no `customdata` does not answer to the pointer."""
        trace.setdefault("hoverinfo", "none" if "customdata" in trace else "skip")
        listed = trace.pop("listed", True) and series not in self.in_legend
        if listed:
            self.in_legend.add(series)
        self.figure.add_trace(
            go.Scatter(name=label, legendgroup=str(series), legendrank=self.ranks[series], showlegend=listed, **trace), **place
        )

    def series(self, own: Numbered) -> Iterable[tuple[tuple[Width, str], Numbered, str]]:
        """(series, its coders, its colour) of the coders."""
        for key in sorted({coder.series for _, coder in own}):
            yield key, [(i, coder) for i, coder in own if coder.series == key], self.colours[key[0]]

    def note(self, text: str) -> str:
        """The line above the picture."""
        shown = len(self.names)
        return text + (f" {shown} of {shown + self.left_out} hookpoints are shown, evenly taken." if self.left_out else "")


def draw_pareto(coders: Numbered) -> tuple[go.Figure, str] | None:
    """L0 against held-out FVU and CE loss score; None where no coder has such a point."""
    trades = [trade for trade in TRADES if trade.shown(coder for _, coder in coders)]
    shown = [(i, coder) for i, coder in coders if any(trade.shown([coder]) for trade in trades)]
    if not shown:
        return None
    found = Panels(shown, len(trades))
    for name in found.names:
        for row, trade in enumerate(trades):
            place = found.place(name, row)
            own = [(i, coder) for i, coder in shown if coder.panel == name and trade.shown([coder])]
            points_of_panel(found, place, own, trade)
            at, ends = ticks(coder for _, coder in own), np.log10(reach([coder for _, coder in own])).tolist()
            across = dict(type="log", range=ends, tickvals=at, ticktext=[f"{k:,}" for k in at])
            found.figure.update_xaxes(title_text="L0 (latents per token)", **across, **place)
            values = [trade.of(coder) for _, coder in own]
            found.figure.update_yaxes(**(log_axis(values) if logarithmic(values) else {}), title_text=trade.label, **place)
    return found.figure, found.note(
        "Every coder is a point; a line joins the best of each k. Rings: Pareto-optimal within the panel."
    )


def points_of_panel(found: Panels, place: dict[str, int], own: Numbered, trade: Trade) -> None:
    """The traces of one Pareto panel."""
    for key, members, colour in found.series(own):
        line = best_line([coder for _, coder in members], trade.cost)
        label = f"{key[1]}, {key[0]}"
        style = {"color": colour, "dash": LINES.get(key[1], "dot"), "width": 1.5}
        found.add(place, key, label, x=[c.l0 for c in line], y=[trade.of(c) for c in line], mode="lines", line=style, listed=False)
        found.add(
            place, key, label, x=[c.l0 for _, c in members], y=[trade.of(c) for _, c in members], customdata=[i for i, _ in members],
            mode="markers", marker={"color": colour, "symbol": SYMBOLS.get(key[1], "square"), "size": 8},
        )  # fmt: skip
    best = optimal([coder for _, coder in own], trade)
    ring = {"symbol": "circle-open", "size": 14, "color": "black", "line": {"width": 1}}
    found.add(place, RING, RING, x=[c.l0 for c in best], y=[trade.of(c) for c in best], mode="markers", marker=ring)


def log_axis(values: Sequence[float]) -> dict[str, Any]:
    """A logarithmic axis with ticks at 1, 2 and 5; with many decades as plotly has them."""
    narrow = bool(values) and max(values) / min(values) < 300
    return {"type": "log", "tickformat": "~g"} | ({"dtick": "D2"} if narrow else {})


def joined(members: Numbered, line: Callable[[Coder], np.ndarray]) -> dict[str, np.ndarray]:
    """The lines of several coders as one trace, with gaps between; each point knows its coder."""
    gap = np.full((2, 1), np.nan)
    pieces = [(i, np.concatenate([line(coder), gap], axis=1)) for i, coder in members]
    x, y = np.concatenate([piece for _, piece in pieces], axis=1).astype(np.float32)
    return {"x": x, "y": y, "customdata": np.concatenate([np.full(piece.shape[1], i, np.int32) for i, piece in pieces])}


def draw_curves(coders: Numbered) -> tuple[go.Figure, str] | None:
    """Training FVU against tokens; None where there is no curve."""
    shown = [(i, coder) for i, coder in coders if coder.curve.shape[1]]
    if not shown:
        return None
    most = points_each(len(shown))
    found = Panels(shown, 1)
    for name in found.names:
        place = found.place(name, 0)
        for key, members, colour in found.series([(i, coder) for i, coder in shown if coder.panel == name]):
            line = {"color": colour, "dash": LINES.get(key[1], "dot"), "width": 1.3}
            found.add(
                place, key, f"{key[1]}, {key[0]}", mode="lines", line=line, **joined(members, lambda c: thinned(c.curve, most))
            )
        values = [value for _, coder in shown if coder.panel == name for value in coder.curve[1] if 0 < value < float("inf")]
        found.figure.update_xaxes(title_text="training tokens", **place)
        found.figure.update_yaxes(**log_axis(values), title_text="FVU, training", **place)
    longest = max(min(coder.curve.shape[1], most) for _, coder in shown)
    return found.figure, found.note(f"A line for each coder, of at most {longest} points, evenly taken.")


def draw_densities(coders: Numbered) -> tuple[go.Figure, str] | None:
    """How often latents fire; None where no coder's densities are there."""
    shown = [(i, coder) for i, coder in coders if coder.densities]
    if not shown:
        return None
    found = Panels(shown, 1)
    for name in found.names:
        place = found.place(name, 0)
        for key, members, colour in found.series([(i, coder) for i, coder in shown if coder.panel == name]):
            line = {"color": colour, "dash": LINES.get(key[1], "dot"), "width": 1.3}
            found.add(place, key, f"{key[1]}, {key[0]}", mode="lines", line=line, **joined(members, steps))
        found.figure.update_xaxes(title_text="log10 of density (share of tokens)", **place)
        found.figure.update_yaxes(title_text="latents (% per bin)", rangemode="tozero", **place)
    return found.figure, found.note(
        "A step line for each coder; latents that never fired are not in it, their share is in the tooltip."
    )


def steps(coder: Coder) -> np.ndarray:
    """A coder's histogram as a line."""
    return outline(coder.densities) if coder.densities and len(coder.densities.counts) else np.zeros((2, 0))


FIGURES: dict[str, Callable[[Numbered], tuple[go.Figure, str] | None]] = {
    "pareto": draw_pareto,
    "curves": draw_curves,
    "densities": draw_densities,
}
