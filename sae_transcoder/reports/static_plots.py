"""The pictures for a paper: Pareto fronts, training curves and densities, by matplotlib, as png and svg.

The same runs give the same bytes. Colour is the coder's width, the marker its type; k is the line's style where it matters.
"""

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from sae_transcoder.reports.data_files import put
from sae_transcoder.reports.plot_data import (
    TRADES,
    Coder,
    Trade,
    Width,
    best_line,
    logarithmic,
    opacity,
    optimal,
    outline,
    panels,
    points_each,
    reach,
    spread,
    thinned,
    ticks,
)

STYLE: Any = {
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
SIZE = (2.9, 2.5)  # inches of one panel
MARKERS = {"sae": "o", "transcoder": "D"}
THICK = {"sae": 0.9, "transcoder": 1.7}  # lines of densities, which have no markers
DASHES: Sequence[Any] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (10, 2)), (0, (3, 1, 1, 1, 1, 1)))
RING = "Pareto-optimal: no other point of the panel has both\na lower L0 and a lower FVU (a higher CE score)"


def palette(widths: Iterable[Width]) -> dict[Width, str]:
    """A colour for each width, from narrow to wide; viridis without its light end, which white swallows."""
    ordered = sorted(set(widths))
    viridis = matplotlib.colormaps["viridis"]
    return {width: to_hex(viridis(0.05 + 0.7 * i / max(1, len(ordered) - 1))) for i, width in enumerate(ordered)}


def styles(coders: Iterable[Coder]) -> dict[int, Any]:
    """A line style for each k; one for all where there are more than can be told apart."""
    every = sorted({coder.k for coder in coders})
    return dict(zip(every, DASHES, strict=False)) if len(every) <= len(DASHES) else dict.fromkeys(every, DASHES[0])


def grid(names: Sequence[str], rows: int) -> tuple[Figure, dict[tuple[str, int], Axes]]:
    """A figure of `rows` panels for each name, and its axes; many names are wrapped."""
    across = min(len(names), COLUMNS)
    down = -(-len(names) // across) * rows
    figure = Figure(figsize=(max(5.0, across * SIZE[0]), down * SIZE[1] + 0.2), layout="constrained")
    axes = {}
    for i, name in enumerate(names):
        for row in range(rows):
            place = ((i // across) * rows + row) * across + i % across + 1
            axes[name, row] = figure.add_subplot(down, across, place)
        axes[name, 0].set_title(wrapped(name))
    return figure, axes


def wrapped(name: str) -> str:
    """A long module name in two lines."""
    middle = name.find(".", len(name) // 2)
    return name if len(name) <= 34 or middle < 0 else f"{name[: middle + 1]}\n{name[middle + 1 :]}"


def decimal(value: float, _: object = None) -> str:
    """A tick's number without powers of ten."""
    return f"{value:.3g}"


def log_axis(axis: Any, values: Sequence[float]) -> None:
    """Gives an axis that is logarithmic ticks at 1, 2 and 5 with plain numbers; with many decades at the decades."""
    narrow = max(values) / min(values) < 300
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    axis.set_major_formatter(FuncFormatter(decimal))
    axis.set_minor_formatter(NullFormatter())


def handles(coders: Sequence[Coder], describe: Callable[[Width, str], str], marked: bool = True) -> list[Line2D]:
    """The legend's line for each width and type, which is told by the marker, without markers by the line's thickness."""
    colours = palette(coder.width for coder in coders)
    found = []
    for width, kind in sorted({coder.series for coder in coders}):
        looks: dict[str, Any] = {"marker": MARKERS.get(kind, "s"), "markersize": 5} if marked else {"linewidth": THICK.get(kind, 1)}
        found.append(Line2D([], [], color=colours[width], label=describe(width, kind), **looks))
    return found


def by_k(coders: Sequence[Coder]) -> list[Line2D]:
    """The legend's line for each k; none where k is not shown."""
    found = styles(coders)
    if len(found) < 2 or len(set(map(str, found.values()))) < 2:
        return []
    return [Line2D([], [], color="#444444", linestyle=style, label=f"k = {k}") for k, style in found.items()]


def legend(figure: Figure, shown: Sequence[Line2D]) -> None:
    """Puts the legend below the panels, in as many columns as fit."""
    widest = max(max(len(line) for line in str(handle.get_label()).splitlines()) for handle in shown)
    columns = max(1, min(len(shown), int(figure.get_figwidth() / (0.4 + 0.068 * widest))))
    lines = -(-len(shown) // columns) + any("\n" in str(handle.get_label()) for handle in shown)
    figure.set_figheight(figure.get_figheight() + 0.17 * lines)
    figure.legend(handles=shown, loc="outside lower center", ncols=columns, handlelength=2.8)


def note(figure: Figure, drawn: Sequence[str], every: Sequence[str]) -> None:
    """Says which hookpoints are not drawn."""
    if len(drawn) < len(every):
        figure.suptitle(
            f"{len(drawn)} of {len(every)} hookpoints, evenly taken; the others are in report.html", fontsize=8, color="#555555"
        )


def draw_pareto(coders: Sequence[Coder]) -> Figure | None:
    """L0 against held-out FVU and CE loss score; None where no coder has such a point."""
    trades = [trade for trade in TRADES if trade.shown(coders)]
    shown = [coder for coder in coders if any(trade.shown([coder]) for trade in trades)]
    if not shown:
        return None
    colours = palette(coder.width for coder in shown)
    every = panels(shown)
    names = spread(every, MOST_PANELS)
    figure, axes = grid(names, len(trades))
    for (name, row), axis in axes.items():
        trade = trades[row]
        own = trade.shown(coder for coder in shown if coder.panel == name)
        k_axis(axis, own or [coder for coder in shown if coder.panel == name])
        axis.set_ylabel(trade.label)
        axis.set_xlabel("L0 (latents per token)")
        if own:
            panel_of_points(axis, own, trade, colours)
        else:
            axis.text(0.5, 0.5, "none was measured", transform=axis.transAxes, ha="center", color="#777777")
    ring = Line2D([], [], linestyle="", marker="o", markersize=9, markerfacecolor="none", markeredgecolor="black", label=RING)
    legend(figure, [*handles(shown, lambda width, kind: f"{kind}, {width}"), ring])
    note(figure, names, every)
    return figure


def k_axis(axis: Axes, coders: Sequence[Coder]) -> None:
    """A logarithmic L0 axis with the coders' k at it."""
    axis.set_xscale("log")
    places = ticks(coders)
    axis.set_xlim(reach(coders))
    axis.set_xticks(places, [f"{k:,}" for k in places])
    axis.xaxis.set_minor_locator(NullLocator())


def panel_of_points(axis: Axes, coders: Sequence[Coder], trade: Trade, colours: dict[Width, str]) -> None:
    """All points, a line through each series' best, a ring around what is Pareto-optimal."""
    for width, kind in sorted({coder.series for coder in coders}):
        own = [coder for coder in coders if coder.series == (width, kind)]
        line = best_line(own, trade.cost)
        axis.plot([c.l0 for c in line], [trade.of(c) for c in line], color=colours[width], linewidth=1.2, zorder=2)
        axis.plot(
            [c.l0 for c in own], [trade.of(c) for c in own], MARKERS.get(kind, "s"), ms=4.5, mew=0, color=colours[width], zorder=3
        )
    best = optimal(coders, trade)
    axis.plot([c.l0 for c in best], [trade.of(c) for c in best], "o", markersize=9, mfc="none", mec="black", mew=0.8, zorder=4)
    values = [trade.of(coder) for coder in coders]
    axis.margins(y=0.12)
    if logarithmic(values):
        axis.set_yscale("log")
        log_axis(axis.yaxis, values)
    else:
        axis.yaxis.set_major_locator(MaxNLocator(6, min_n_ticks=3, steps=[1, 2, 2.5, 5, 10]))


def row_of_panels(shown: Sequence[Coder]) -> tuple[Figure, dict[tuple[str, int], Axes], list[str], list[str]]:
    """An empty panel for each hookpoint: figure, axes, the hookpoints that have one, and all there are."""
    every = panels(shown)
    names = spread(every, MOST_PANELS)
    figure, axes = grid(names, 1)
    return figure, axes, names, every


def draw_curves(coders: Sequence[Coder]) -> Figure | None:
    """Training FVU against tokens; None where there is no curve."""
    shown = [coder for coder in coders if coder.curve.shape[1]]
    if not shown:
        return None
    colours, dashes = palette(coder.width for coder in shown), styles(shown)
    figure, axes, names, every = row_of_panels(shown)
    most = points_each(len(shown))
    for (name, _), axis in axes.items():
        own = [coder for coder in shown if coder.panel == name]
        for coder in own:
            line = {"color": colours[coder.width], "linestyle": dashes[coder.k], "linewidth": 1, "alpha": opacity(len(own))}
            axis.plot(*thinned(coder.curve, most), **line)
            axis.plot(*coder.curve[:, -1:], color=colours[coder.width], marker=MARKERS.get(coder.model_type, "s"), markersize=4)
        values = [value for coder in own for value in coder.curve[1] if 0 < value < float("inf")]
        if values:
            axis.set_yscale("log")
            log_axis(axis.yaxis, values)
            axis.yaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: f"{tokens / 1e6:g}"))
        axis.set_xlabel("training tokens (millions)")
        axis.set_ylabel("FVU, training")
    legend(figure, [*handles(shown, lambda width, kind: f"{kind}, {width}"), *by_k(shown)])
    note(figure, names, every)
    return figure


def draw_densities(coders: Sequence[Coder]) -> Figure | None:
    """How often latents fire; None where no coder's densities are there."""
    shown = [coder for coder in coders if coder.densities]
    if not shown:
        return None
    colours, dashes = palette(coder.width for coder in shown), styles(shown)
    figure, axes, names, every = row_of_panels(shown)
    for (name, _), axis in axes.items():
        own = [coder for coder in shown if coder.panel == name]
        for coder in own:
            if coder.densities and len(coder.densities.counts):
                line = {"color": colours[coder.width], "linestyle": dashes[coder.k], "linewidth": THICK.get(coder.model_type, 1)}
                axis.plot(*outline(coder.densities), alpha=opacity(len(own)), **line)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("log10 of density (share of tokens)")
        axis.set_ylabel("latents (% per bin)")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))

    def describe(width: Width, kind: str) -> str:
        own = [coder.densities for coder in shown if coder.series == (width, kind) and coder.densities]
        return f"{kind}, {width} (never fired: {sum(h.never for h in own):,} of {sum(h.total for h in own):,})"

    legend(figure, [*handles(shown, describe, marked=False), *by_k(shown)])
    note(figure, names, every)
    return figure


DRAW = {"pareto": draw_pareto, "curves": draw_curves, "densities": draw_densities}


def write(coders: Sequence[Coder], folder: Path) -> list[Path]:
    """Draws what there is to draw into png and svg files. Raises ReportError where they cannot be written."""
    written = []
    with matplotlib.rc_context(STYLE):
        for name, draw in DRAW.items():
            if figure := draw(coders):
                for kind, extra in {"png": {"dpi": 200}, "svg": {"metadata": {"Date": None}}}.items():
                    content = io.BytesIO()
                    figure.savefig(content, format=kind, **extra)  # type: ignore[arg-type]
                    written.append(put(folder / f"{name}.{kind}", content.getvalue()))
    return written
