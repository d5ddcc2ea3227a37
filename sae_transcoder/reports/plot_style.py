"""What static and interactive plots share: colours, labels, panels, the range and ticks of axes."""

from collections.abc import Iterable, Sequence

import matplotlib
from matplotlib.colors import to_hex
from natsort import natsorted

from sae_transcoder.reports.plot_data import CURVE_POINTS, CoderSize, PlottedCoder

ALL_POINTS = 60_000  # of all curves of a plot, at most, unless that is less than 20 each
L0_LABEL = "L0 (latents per token)"
TRAINING_FVU_LABEL = "FVU, training"
DENSITY_LABEL = "log10 of density (share of tokens)"
LATENTS_LABEL = "latents (% per bin)"


def palette(sizes: Iterable[CoderSize]) -> dict[CoderSize, str]:
    """A colour for each size, in their order; viridis without its light end, which is hard to see on white."""
    ordered = sorted(set(sizes))
    viridis = matplotlib.colormaps["viridis"]
    return {size: to_hex(viridis(0.05 + 0.7 * i / max(1, len(ordered) - 1))) for i, size in enumerate(ordered)}


def series_label(size: CoderSize, model_type: str) -> str:
    """The name of a series in the legend."""
    return f"{model_type}, {size}"


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


def spans_few_decades(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis has room for ticks at 1, 2 and 5."""
    return bool(values) and max(values) / min(values) < 300


def positive_fvus(coders: Iterable[PlottedCoder]) -> list[float]:
    """The values of training curves that a logarithmic axis can show."""
    return [value for coder in coders for value in coder.curve[1] if 0 < value < float("inf")]


def l0_range(coders: Sequence[PlottedCoder]) -> tuple[float, float]:
    """The ends of an L0 axis that shows the coders and their k."""
    shown = [*k_ticks(coders), *(coder.l0 for coder in coders if coder.l0 > 0)]
    return (min(shown) / 1.18, max(shown) * 1.18) if shown else (1.0, 10.0)


def k_ticks(coders: Iterable[PlottedCoder]) -> list[int]:
    """The values of k to write at an L0 axis, without those too close together to read."""
    ks = sorted({coder.k for coder in coders if coder.k > 0})
    if not ks:
        return []
    apart = max(1.12, (ks[-1] / ks[0]) ** (1 / 9))
    ticks = [ks[0]]
    for k in ks[1:]:
        if k / ticks[-1] >= apart * 0.999:
            ticks.append(k)
    return ticks
