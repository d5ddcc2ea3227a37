"""With distribute_modules each rank trains the coders of its own hookpoints: what rank 0 collects from all of them."""

from collections.abc import Mapping, Sequence

import torch

from sae_transcoder.coder.corrected_coder import SparseCoder
from sae_transcoder.coder.names import hookpoint_of
from sae_transcoder.distributed import Ranks


def collect_coders(
    local: Mapping[str, SparseCoder],
    names: Sequence[str],
    hookpoints_by_rank: Sequence[Sequence[str]],
    ranks: Ranks,
    device: torch.device,
) -> dict[str, SparseCoder]:
    """{name: coder} of all ranks, in the order of `names`, on the device of rank 0; on other ranks empty."""
    coders = {}
    for name in names:
        owner = next(r for r, hookpoints in enumerate(hookpoints_by_rank) if hookpoint_of(name) in hookpoints)
        coder = ranks.send_to_first(local[name].cpu() if owner == ranks.rank > 0 else local.get(name), owner)
        if coder is not None:
            coders[name] = coder.to(device)
    return coders


def collect_metrics(local: Mapping[str, float], names: Sequence[str], ranks: Ranks) -> dict[str, float]:
    """The metrics of all coders, on every rank, in the order in which one process has them: losses first, each by coder in the order of
    `names`."""
    metrics = {name: value for of_rank in ranks.all_gather(dict(local)) for name, value in of_rank.items()}
    order = {name: i for i, name in enumerate(names)}
    kinds = ("dead_fraction", "threshold")

    def place(metric: tuple[str, float]) -> tuple[int, int]:
        kind, _, coder = metric[0].partition("/")
        return kinds.index(kind) + 1 if kind in kinds else 0, order[coder]

    return dict(sorted(metrics.items(), key=place))
