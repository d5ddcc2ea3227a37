"""A coder's own held-out metrics: reconstruction, shrinkage, sparsity, density. metric_names.py says what each means."""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sae_transcoder.coder.corrected_coder import SparseCoder
from sae_transcoder.coder.entries import Entries
from sae_transcoder.coder.sparse_products import EmbeddingBags
from sae_transcoder.coder.trained_coder import TrainedCoder
from sae_transcoder.metric_names import THRESHOLD, THRESHOLD_QUANTILES
from sae_transcoder.run_store.eval_file import LevelMetrics


class ReconstructionStats:
    """Sums over tokens, from which a coder's own metrics are computed."""

    def __init__(self, coder: SparseCoder):
        self.coder = coder
        zero = coder.b_dec.new_zeros((), dtype=torch.float64)
        names = ("error", "y_squared", "out_squared", "y_out", "y_norm", "out_norm", "ratio", "cosine", "active", "acts")
        self.sums = dict.fromkeys(names, zero)
        self.y_sum = torch.zeros_like(coder.b_dec, dtype=torch.float64)
        self.fired = coder.b_dec.new_zeros(coder.num_latents, dtype=torch.float64)
        self.tokens = self.positions = 0
        widths = coder.matryoshka_widths if isinstance(coder, TrainedCoder) else None
        self.level_sums = {width: {"error": zero, "active": zero} for width in widths or ()}

    def add(self, x: Tensor, y: Tensor, positions: int) -> None:
        """Adds inputs x and targets y, each [token, d], which were kept of so many positions."""
        self.positions += positions
        self.tokens += len(y)
        y = y.double()
        out, entries = reconstruct(self.coder, x)
        out, acts = out.double(), entries.preacts.double()
        self._add_levels(x, y, entries)
        y_norm, out_norm, y_out = y.norm(dim=1), out.norm(dim=1), (y * out).sum(1)
        tiny = torch.finfo(torch.float64).tiny
        terms = {
            "error": (y - out).pow(2),
            "y_squared": y.pow(2),
            "out_squared": out.pow(2),
            "y_out": y_out,
            "y_norm": y_norm,
            "out_norm": out_norm,
            "ratio": out_norm / y_norm.clamp_min(tiny),
            "cosine": y_out / (y_norm * out_norm).clamp_min(tiny),
            "active": acts > 0,
            "acts": acts,
        }
        self.sums = {name: total + terms[name].sum() for name, total in self.sums.items()}
        self.y_sum += y.sum(0)
        self.fired.index_add_(0, entries.latents, torch.ones_like(acts))

    def _add_levels(self, x: Tensor, y: Tensor, entries: Entries) -> None:
        """Adds the error and the active latents of each nested dictionary; entries: the latents that fire for x."""
        outputs = level_outputs(self.coder, x, entries, list(self.level_sums))
        for (width, sums), out in zip(self.level_sums.items(), outputs, strict=True):
            terms = {"error": (y - out.double()).pow(2), "active": entries.latents < width}
            self.level_sums[width] = {name: sums[name] + terms[name].sum() for name in sums}

    def density(self) -> Tensor:
        """Share of tokens on which each latent fires, [latent]; NaN without tokens."""
        return self.fired / self.tokens

    def fvu(self, error: float) -> float:
        """The FVU for a sum of squared errors; NaN where the targets do not vary."""
        variance = self.sums["y_squared"].item() - ratio(self.y_sum.pow(2).sum().item(), self.tokens)
        return ratio(error, variance) if variance > 0 else math.nan

    def levels(self) -> tuple[LevelMetrics, ...]:
        """The metrics of each nested dictionary of a Matryoshka coder; empty for another coder."""
        return tuple(
            LevelMetrics(width, self.fvu(sums["error"].item()), ratio(sums["active"].item(), self.tokens))
            for width, sums in self.level_sums.items()
        )

    def metrics(self) -> dict[str, float]:
        """The coder's own metrics {name: value}."""
        total = {name: value.item() for name, value in self.sums.items()}
        tokens = self.tokens
        density = self.density()
        fvu = self.fvu(total["error"])
        metrics = {
            "fvu": fvu,
            "explained_variance": 1 - fvu,
            "mse": ratio(total["error"], tokens),
            "cossim": ratio(total["cosine"], tokens),
            "l2_norm_in": ratio(total["y_norm"], tokens),
            "l2_norm_out": ratio(total["out_norm"], tokens),
            "l2_ratio": ratio(total["ratio"], tokens),
            "relative_reconstruction_bias": ratio(total["out_squared"], total["y_out"]),
            "l0": ratio(total["active"], tokens),
            "l1": ratio(total["acts"], tokens),
            "frac_alive": (self.fired > 0).double().mean().item(),
            "total_tokens_eval_sparsity_variance": float(tokens),
            "frac_tokens_excluded": 1 - tokens / self.positions,
        }
        for percent in (1, 10):
            frequent = density > percent / 100
            metrics[f"freq_over_{percent}_percent"] = frequent.double().mean().item()
            metrics[f"normalized_freq_over_{percent}_percent"] = ratio(density[frequent].sum().item(), density.sum().item())
        return metrics


def ratio(numerator: float, denominator: float) -> float:
    """The quotient, NaN where the denominator is zero."""
    return numerator / denominator if denominator else math.nan


def reconstruct(coder: SparseCoder, x: Tensor) -> tuple[Tensor, Entries]:
    """The coder's output [token, d] for inputs x [token, d], and the latents that fire, with their activations."""
    if isinstance(coder, TrainedCoder) and coder.threshold is not None:
        entries = coder.firing(x)
        (out,) = level_outputs(coder, x, entries, [coder.num_latents])
        return out, entries
    latents = coder.encode(x)
    out = coder.decode(latents.top_acts, latents.top_indices)
    fires = latents.top_acts > 0
    entries = Entries(latents.top_acts[fires], fires.nonzero()[:, 0], latents.top_indices[fires])
    return (out if coder.W_skip is None else out + x.to(out.dtype) @ coder.W_skip.mT), entries


def level_outputs(coder: SparseCoder, x: Tensor, entries: Entries, widths: Sequence[int]) -> Iterator[Tensor]:
    """Yields the output [token, d] of each nested dictionary, which adds its own latents to the output of the one before.

    entries: the latents that fire for x [token, d_in], with their activations. Each latent is decoded once.
    """
    out = coder.b_dec.expand(len(x), -1)
    if coder.W_skip is not None:
        out = out + x.to(coder.dtype) @ coder.W_skip.mT
    for start, width in itertools.pairwise([0, *widths]):
        own = entries.where((entries.latents >= start) & (entries.latents < width))
        products = EmbeddingBags(own.indices(len(x), coder.num_latents))
        out = out + products.matmul(own.preacts.to(coder.dtype), coder.W_dec)
        yield out


def threshold_distribution(coder: SparseCoder) -> dict[str, float]:
    """The one threshold that all latents share, or the quantiles of their thresholds {name: value}; empty for a coder without."""
    threshold = coder.threshold if isinstance(coder, TrainedCoder) else None
    if threshold is None:
        return {}
    if threshold.numel() == 1:
        return {THRESHOLD: threshold.item()}
    quantiles = np.quantile(threshold.double().cpu().numpy(), list(THRESHOLD_QUANTILES.values()))
    return dict(zip(THRESHOLD_QUANTILES, quantiles.tolist(), strict=True))


def average_max_cosine(rows: Tensor) -> float:
    """The mean over rows [latent, d] of the largest cosine with another row; NaN for a single one."""
    if len(rows) < 2:
        return math.nan
    unit = F.normalize(rows.float(), dim=1)
    total = 0.0
    for start in range(0, len(unit), 1024):  # latents x latents cosines at once may not fit
        cosines = unit[start : start + 1024] @ unit.T
        cosines.diagonal(start).fill_(-torch.inf)
        total += cosines.amax(1).double().sum().item()
    return total / len(unit)
