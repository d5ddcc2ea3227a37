"""The legends of the static plots, and the markers and line styles that they explain."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sae_transcoder.reports.plot_data import CoderSize, PlottedCoder
from sae_transcoder.reports.plot_style import palette, series_label

MARKERS = {"sae": "o", "transcoder": "D"}
LINE_WIDTHS = {"sae": 0.9, "transcoder": 1.7}  # lines of densities, which have no markers
DASHES: Sequence[Any] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (10, 2)), (0, (3, 1, 1, 1, 1, 1)))
RING_LABEL = "Pareto-optimal: no other point of the panel has both\na lower L0 and a lower FVU (a higher CE score)"


def line_styles(coders: Iterable[PlottedCoder]) -> dict[int, Any]:
    """A line style for each k; the same for all if there are more k than styles."""
    ks = sorted({coder.k for coder in coders})
    return dict(zip(ks, DASHES, strict=False)) if len(ks) <= len(DASHES) else dict.fromkeys(ks, DASHES[0])


def ring_handle() -> Line2D:
    """The legend entry of the rings around Pareto-optimal points."""
    return Line2D([], [], linestyle="", marker="o", markersize=9, markerfacecolor="none", markeredgecolor="black", label=RING_LABEL)


def series_handles(
    coders: Sequence[PlottedCoder], label: Callable[[CoderSize, str], str] = series_label, markers: bool = True
) -> list[Line2D]:
    """A legend entry for each series. Its type shows in the marker or, without markers, in the width of the line."""
    colours = palette(coder.size for coder in coders)
    handles = []
    for size, kind in sorted({coder.series for coder in coders}):
        look: dict[str, Any] = (
            {"marker": MARKERS.get(kind, "s"), "markersize": 5} if markers else {"linewidth": LINE_WIDTHS.get(kind, 1)}
        )
        handles.append(Line2D([], [], color=colours[size], label=label(size, kind), **look))
    return handles


def k_handles(coders: Sequence[PlottedCoder]) -> list[Line2D]:
    """A legend entry for each k; none if all lines have one style."""
    styles = line_styles(coders)
    if len(styles) < 2 or len(set(map(str, styles.values()))) < 2:
        return []
    return [Line2D([], [], color="#444444", linestyle=style, label=f"k = {k}") for k, style in styles.items()]


def add_legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Puts the legend below the panels, in as many columns as fit."""
    longest = max(max(len(line) for line in str(handle.get_label()).splitlines()) for handle in handles)
    columns = max(1, min(len(handles), int(figure.get_figwidth() / (0.4 + 0.068 * longest))))
    lines = -(-len(handles) // columns) + any("\n" in str(handle.get_label()) for handle in handles)
    figure.set_figheight(figure.get_figheight() + 0.17 * lines)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=2.8)
