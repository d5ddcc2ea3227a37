"""The panels of the plots of report.html: traces by series, one legend, and an arrangement for wide and for narrow screens."""

import html
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sae_transcoder.reports import plot_style
from sae_transcoder.reports.plot_data import PlottedCoder, Series

COLUMNS = 3
MOST_PANELS = 60
NARROW_TITLE = 42  # letters of a panel's title that fit a narrow screen
NARROW = 700  # pixels of a window in which panels stand in one column
HEIGHT = 310  # pixels of a panel
PANELS = 600  # pixels of the panels of a row together, at least
GAP = 74  # pixels between two of them, for ticks and title of an axis
LETTERS = 44  # of a line in the legend
LETTER = 7  # pixels of one
AROUND = 190  # pixels beside panels and the legend's letters: margins, the legend's markers, a scroll bar
MOST_LEGEND = 700  # pixels of a legend that does not scroll
RING = "Pareto-optimal"
Numbered = Sequence[tuple[int, PlottedCoder]]
"""Coders with their index in the page."""


class Panels:
    """A figure with `rows` panels for each hookpoint, and a legend that lists each series once. page: all coders of the page, in whose figures
    a series has one colour."""

    def __init__(self, coders: Numbered, page: Numbered, rows: int = 1):
        names = plot_style.panels(coder for _, coder in coders)
        self.names = plot_style.evenly_spaced(names, MOST_PANELS)
        self.left_out = len(names) - len(self.names)
        self.num_columns = min(COLUMNS, len(self.names))
        self.rows = rows
        num_rows = -(-len(self.names) // self.num_columns) * rows
        titles = [""] * (num_rows * self.num_columns)
        for i, name in enumerate(self.names):
            titles[(i // self.num_columns) * rows * self.num_columns + i % self.num_columns] = html.escape(name)
        gap = min(95 / (HEIGHT * num_rows), 0.9 / max(1, num_rows - 1))
        self.figure = make_subplots(
            num_rows,
            self.num_columns,
            subplot_titles=titles,
            vertical_spacing=gap,
            horizontal_spacing=GAP / row_width(self.num_columns),
        )
        self.num_rows = num_rows
        self.figure.update_layout(
            height=HEIGHT * num_rows + 120, template="plotly_white", hovermode="closest", margin=dict(l=60, r=10, t=40, b=50),
            legend=dict(itemsizing="constant"), font=dict(family="system-ui, sans-serif", size=12),
        )  # fmt: skip
        self.figure.update_annotations(font_size=13)
        self.figure.update_xaxes(showline=True, linecolor="#999", ticks="outside")
        self.figure.update_yaxes(showline=True, linecolor="#999", ticks="outside")
        self.colours = plot_style.palette(coder.series for _, coder in page)
        self.k_dashes = {k: dash for k, (_, dash) in plot_style.k_dashes(coder for _, coder in coders).items()}
        ordered = [*sorted({coder.series for _, coder in coders}), RING, *map(k_label, self.k_dashes)]
        self.legend_ranks: dict[Any, int] = {series: 1 + i for i, series in enumerate(ordered)}
        self.in_legend: dict[Any, int] = {}  # {series: lines of its entry}

    def position(self, name: str, row: int) -> dict[str, int]:
        """The row and column of a hookpoint's panel in the figure, from 1."""
        i = self.names.index(name)
        return {"row": (i // self.num_columns) * self.rows + row + 1, "col": i % self.num_columns + 1}

    def add(self, position: dict[str, int], series: Series | str, **trace: Any) -> None:
        """Adds a trace of a series. A trace without `customdata` has no tooltip; with listed=False it is not in the legend."""
        trace.setdefault("hoverinfo", "none" if "customdata" in trace else "skip")
        listed = trace.pop("listed", True) and series not in self.in_legend
        label = plot_style.in_lines(str(series), LETTERS)
        if listed:
            self.in_legend[series] = len(label)
        self.figure.add_trace(
            go.Scatter(
                name="<br>".join(label), legendgroup=str(series), legendrank=self.legend_ranks[series], showlegend=listed, **trace
            ),
            **position,
        )

    def add_lines(
        self, name: str, coders: Numbered, line: Callable[[PlottedCoder], np.ndarray], *, markers: bool = False
    ) -> dict[str, int]:
        """Adds the coders' lines of a panel: a trace for each series and, with markers at each point, no more; without, for each k, which the
        dash shows, and the width the type. Returns the panel's position."""
        position = self.position(name, 0)
        for series, members, colour in self.by_series([(i, coder) for i, coder in coders if coder.panel == name]):
            if markers:
                look: dict[str, Any] = {"line": {"color": colour, "dash": plot_style.dash(series)[1], "width": 1.3}}
                look |= {"mode": "lines+markers", "marker": {"symbol": plot_style.marker(series)[1], "size": 7}}
                self.add(position, series, **look, **joined(members, line))
                continue
            width = plot_style.LINE_WIDTHS.get(series.model_type, 1.3)
            for dash in dict.fromkeys(self.k_dashes.values()):
                if dashed := [(i, coder) for i, coder in members if self.k_dashes[coder.k] == dash]:
                    drawn = {"line": {"color": colour, "dash": dash, "width": width}, "mode": "lines"}
                    self.add(position, series, **drawn, **joined(dashed, line))
        if not markers and len(set(self.k_dashes.values())) > 1:
            for k, dash in self.k_dashes.items():
                self.add(
                    position, k_label(k), x=[None], y=[None], mode="lines", line={"color": "#444444", "dash": dash, "width": 1.3}
                )
        return position

    def by_series(self, coders: Numbered) -> Iterable[tuple[Series, Numbered, str]]:
        """(series, its coders, its colour) for each series of the coders."""
        for series in sorted({coder.series for _, coder in coders}):
            yield series, [(i, coder) for i, coder in coders if coder.series == series], self.colours[series]

    def arrange(self) -> go.Figure:
        """The figure, whose layout's `meta` holds the `wide` arrangement, in columns, and the `narrow` one, in one column with the legend
        below, as plotly's relayout takes them; and how wide a window the first needs, `least`, in pixels."""
        self.figure.update_layout(height=max(self.figure.layout.height, min(MOST_LEGEND, self.legend_height()) + 120))
        return self.figure.update_layout(meta={"wide": self.wide(), "narrow": self.narrow(), "least": self.least_width()})

    def legend_height(self) -> int:
        """Pixels of the legend."""
        return sum(6 + 17 * lines for lines in self.in_legend.values())

    def least_width(self) -> int:
        """Pixels of a window in which panels stand side by side and have room for the labels of their axes."""
        if self.num_columns == 1:
            return NARROW
        longest = max(len(line) for trace in self.figure.data for line in trace.name.split("<br>"))
        return max(NARROW, row_width(self.num_columns) + LETTER * longest + AROUND)

    def places(self) -> dict[int, Any]:
        """{place in one column: subplot}."""
        return {
            i * self.rows + row: self.figure.get_subplot(*self.position(name, row).values())
            for i, name in enumerate(self.names)
            for row in range(self.rows)
        }

    def narrow(self) -> dict[str, Any]:
        """The arrangement in one column."""
        places = self.places()
        title, gap = 34, 80  # pixels above a panel, and below it for the labels of its axis
        below = 30 + self.legend_height()
        inner = len(places) * (HEIGHT - gap) + (len(places) - 1) * gap
        narrow: dict[str, Any] = {"height": title + inner + gap + below, "margin": {"l": 56, "r": 8, "t": title, "b": gap + below}}
        narrow |= {"legend.orientation": "h", "legend.xanchor": "left", "legend.yanchor": "bottom", "legend.font.size": 11}
        narrow |= {"legend.x": 0, "legend.xref": "container", "legend.y": 0, "legend.yref": "container"}
        for place, subplot in places.items():
            top = 1 - place * HEIGHT / inner
            narrow[axis_key(subplot.xaxis) + ".domain"] = [0, 1]
            narrow[axis_key(subplot.yaxis) + ".domain"] = [max(0.0, top - (HEIGHT - gap) / inner), top]
        for i, name in enumerate(self.names):
            narrow |= {f"annotations[{i}].x": 0.5, f"annotations[{i}].y": 1 - i * self.rows * HEIGHT / inner}
            narrow |= {f"annotations[{i}].font.size": 12 if len(name) <= NARROW_TITLE else 9}
        return narrow

    def wide(self) -> dict[str, Any]:
        """The arrangement in columns, with the legend at the right."""
        layout = self.figure.layout
        wide: dict[str, Any] = {"height": layout.height, "margin": layout.margin.to_plotly_json()}
        wide |= {"legend.orientation": "v", "legend.xanchor": "left", "legend.yanchor": "top", "legend.font.size": 12}
        wide |= {"legend.x": 1.02, "legend.xref": "paper", "legend.y": 1, "legend.yref": "paper"}
        for subplot in self.places().values():
            for axis in (subplot.xaxis, subplot.yaxis):
                wide[axis_key(axis) + ".domain"] = list(axis.domain)
        for i, annotation in enumerate(layout.annotations):
            wide |= {f"annotations[{i}].x": annotation.x, f"annotations[{i}].y": annotation.y, f"annotations[{i}].font.size": 13}
        return wide

    def note(self, text: str) -> str:
        """The text above the plot, which says if some hookpoints are left out."""
        shown = len(self.names)
        return text + (f" {shown} of {shown + self.left_out} hookpoints are shown, evenly taken." if self.left_out else "")


def joined(coders: Numbered, line: Callable[[PlottedCoder], np.ndarray]) -> dict[str, np.ndarray]:
    """The lines of several coders as one trace, with a gap after each; every point has its coder's index."""
    gap = np.full((2, 1), np.nan)
    lines = [(i, np.concatenate([line(coder), gap], axis=1)) for i, coder in coders]
    x, y = np.concatenate([points for _, points in lines], axis=1).astype(np.float32)
    return {"x": x, "y": y, "customdata": np.concatenate([np.full(points.shape[1], i, np.int32) for i, points in lines])}


def row_width(columns: int) -> int:
    """Pixels of a row of panels, at least."""
    return PANELS + GAP * (columns - 1)


def axis_key(axis: Any) -> str:
    """The name of an axis in the layout: `xaxis`, `xaxis2`."""
    return str(axis.plotly_name)


def k_label(k: int) -> str:
    """The legend entry of a k."""
    return f"k = {k}"
