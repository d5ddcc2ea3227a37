"""How a latent's activations are distributed, in the forms that other programs want, from its histogram over log2 of the activation.

What lies within one bin of that histogram is taken to be spread evenly over it, and nothing above the largest activation.
"""

import numpy as np

BINS = 40


def linear_histogram(counts: list[int], edges: list[float], largest: float) -> list[float]:
    """How many of the activations lie in each of BINS equal parts of 0 to the largest. counts [bin], edges [bin + 1]: in log2."""
    return np.diff(below(np.linspace(0, largest, BINS + 1), counts, edges, largest)).tolist()


def percentiles(counts: list[int], edges: list[float], largest: float) -> list[float]:
    """The activations below which 1, 2, ... 100 percent of them lie; the last is the largest."""
    values, total = bounds(edges, largest), np.concatenate([[0], np.cumsum(counts)])
    used = np.concatenate([[True], np.diff(total) > 0])  # np.interp needs ascending counts
    return np.interp(np.arange(1, 101) / 100 * total[-1], total[used], values[used]).tolist()


def below(activations: np.ndarray, counts: list[int], edges: list[float], largest: float) -> np.ndarray:
    """How many of a latent's activations lie below each of these."""
    return np.interp(activations, bounds(edges, largest), np.concatenate([[0], np.cumsum(counts)]))


def bounds(edges: list[float], largest: float) -> np.ndarray:
    """The activations between which the histogram's bins lie; the outermost bins hold smaller and larger ones too."""
    values = np.exp2(np.asarray(edges, np.float64))
    values[0], values[-1] = 0, max(values[-1], largest)
    return np.minimum(values, largest)
