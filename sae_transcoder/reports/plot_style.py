"""What static and interactive plots share: colours, labels, panels, the range and ticks of axes."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
from matplotlib.colors import to_hex, to_rgb
from matplotlib.ticker import MaxNLocator
from natsort import natsorted

from sae_transcoder.reports.plot_data import CURVE_POINTS, PlottedCoder, Series
from sae_transcoder.run_store.run_records import CODER_KINDS

ALL_POINTS = 60_000  # of all curves of a plot, at most, unless that is less than 20 each
L0_LABEL = "L0 (latents per token)"
TRAINING_FVU_LABEL = "FVU, training"
DENSITY_LABEL = "log10 of density (share of tokens)"
LATENTS_LABEL = "latents (% per bin)"
SEED_OPACITY = 0.4  # of the points whose mean is drawn
LINE_WIDTHS = {"sae": 0.9, "transcoder": 1.7}  # lines of densities, which have no markers


# {kind: colour}, distinct for the colour-blind (Okabe and Ito 2008; its two lightest are darkened).
COLOURS = {
    "topk": "#0072b2", "groupmax": "#666666", "batchtopk": "#d55e00", "jumprelu": "#009e73", "matryoshka": "#b0488a",
    "matryoshka_topk": "#a67800",
}  # fmt: skip
# {kind: (matplotlib's marker, plotly's) of an SAE, and of a transcoder}
MARKERS = {
    "topk": (("o", "circle"), ("D", "diamond")),
    "groupmax": (("p", "pentagon"), ("h", "hexagon")),
    "batchtopk": (("s", "square"), ("d", "diamond-tall")),
    "jumprelu": (("^", "triangle-up"), ("v", "triangle-down")),
    "matryoshka": (("P", "cross"), ("*", "star")),
    "matryoshka_topk": (("X", "x"), (">", "triangle-right")),
}
UNKNOWN = ("8", "octagon")
# (matplotlib's line style, plotly's)
DASHES: Sequence[tuple[Any, str]] = (
    ("-", "solid"), ((0, (5, 1.5)), "dash"), ((0, (1.2, 1.2)), "dot"), ((0, (6, 1.5, 1.2, 1.5)), "dashdot"), ((0, (10, 2)), "longdash"),
    ((0, (3, 1, 1, 1, 1, 1)), "longdashdot"),
)  # fmt: skip


def palette(series: Iterable[Series]) -> dict[Series, str]:
    """A colour for each series: of one kind by its size and setting, of several a colour for each kind, paler for smaller sizes and settings of a
    lower rank."""
    distinct = sorted(set(series))
    sizes = sorted({(each.size, each.setting) for each in distinct})
    if len({each.kind for each in distinct}) < 2:
        viridis = matplotlib.colormaps["viridis"]  # without its light end, which is hard to see on white
        by_size = {size: to_hex(viridis(0.05 + 0.7 * i / max(1, len(sizes) - 1))) for i, size in enumerate(sizes)}
        return {each: by_size[each.size, each.setting] for each in distinct}
    return {
        each: paler(COLOURS.get(each.kind, "#333333"), 0.5 * (1 - (sizes.index((each.size, each.setting)) + 1) / len(sizes)))
        for each in distinct
    }


def paler(colour: str, share: float) -> str:
    """The colour with so much white in it."""
    red, green, blue = (channel + share * (1 - channel) for channel in to_rgb(colour))
    return to_hex((red, green, blue))


def marker(series: Series) -> tuple[str, str]:
    """The marker of a series in matplotlib and in plotly."""
    return MARKERS[series.kind][series.model_type == "transcoder"] if series.kind in MARKERS else UNKNOWN


def dash(series: Series) -> tuple[Any, str]:
    """The line style of a series in matplotlib and in plotly: six for the kinds and settings, which differ between SAEs and
    transcoders."""
    place = CODER_KINDS.index(series.kind) if series.kind in CODER_KINDS else 0
    return DASHES[(place + (series.model_type == "transcoder") + series.setting.rank) % len(DASHES)]


def k_dashes(coders: Iterable[PlottedCoder]) -> dict[int, tuple[Any, str]]:
    """A line style for each k in matplotlib and in plotly; the same for all if there are more k than styles."""
    ks = sorted({coder.k for coder in coders})
    return dict(zip(ks, DASHES, strict=False)) if len(ks) <= len(DASHES) else dict.fromkeys(ks, DASHES[0])


def in_lines(label: str, letters: int) -> list[str]:
    """The lines of a legend's entry, of so many letters at most."""
    return textwrap.wrap(label, letters, break_on_hyphens=False)


def panels(coders: Iterable[PlottedCoder]) -> list[str]:
    """The panels of the coders, in natural order."""
    return natsorted({coder.panel for coder in coders})


def evenly_spaced(names: Sequence[str], most: int) -> list[str]:
    """At most `most` of the names, evenly spaced."""
    if len(names) <= most:
        return list(names)
    return [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]


def points_per_curve(num_curves: int) -> int:
    """How many points each curve of a plot may have."""
    return max(20, min(CURVE_POINTS, ALL_POINTS // max(1, num_curves)))


def is_logarithmic(values: Iterable[float]) -> bool:
    """Whether values span so much that their axis should be logarithmic."""
    listed = list(values)
    return bool(listed) and min(listed) > 0 and max(listed) / min(listed) > 8


def log_ticks(values: Sequence[float]) -> list[float]:
    """The numbers to write at a logarithmic axis of these values, all above 0: 1, 2 and 5 of each decade, over many decades 1 alone, and even
    steps where that would be fewer than three."""
    low, high = min(values) / 1.1, max(values) * 1.1
    digits = (1, 2, 5) if high / low < 300 else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in digits if low <= digit * 10.0**decade <= high]
    return ticks if len(ticks) > 2 else [float(tick) for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]


def positive_fvus(coders: Iterable[PlottedCoder]) -> list[float]:
    """The values of training curves that a logarithmic axis can show."""
    return [value for coder in coders for value in coder.curve[1] if 0 < value < float("inf")]


def l0_range(coders: Sequence[PlottedCoder]) -> tuple[float, float]:
    """The ends of an L0 axis that shows the coders and their k."""
    shown = [*k_ticks(coders), *(coder.l0 for coder in coders if coder.l0 > 0)]
    return (min(shown) / 1.18, max(shown) * 1.18) if shown else (1.0, 10.0)


def k_ticks(coders: Iterable[PlottedCoder]) -> list[int]:
    """The values of k to write at an L0 axis, without those too close together to read; none where no coder aims at k."""
    ks = sorted({coder.k for coder in coders if coder.k > 0 and coder.aims_at_k})
    if not ks:
        return []
    apart = max(1.12, (ks[-1] / ks[0]) ** (1 / 9))
    ticks = [ks[0]]
    for k in ks[1:]:
        if k / ticks[-1] >= apart * 0.999:
            ticks.append(k)
    return ticks
