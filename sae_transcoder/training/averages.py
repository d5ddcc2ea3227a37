"""Losses of a run, averaged over the batches since the last line of metrics."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sae_transcoder.distributed import Ranks


class Averages:
    """Sums on the device, which are read once for each line of metrics.

    A sum is named `<loss>/<scope>`, or `<loss>` where the scope, a coder or a seed, is empty.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=device))
        self.batches: dict[str, int] = defaultdict(int)  # {scope: batches that are summed}

    def begin_batch(self, scope: str, losses: Iterable[str] = ()) -> None:
        """Counts a batch for a scope, and adds its losses, also on a rank that has none of the batch's tokens."""
        self.batches[scope] += 1
        for loss in losses:
            _ = self.sums[f"{loss}/{scope}"]

    def add(self, loss: str, scope: str, value: Tensor) -> None:
        """Adds a batch's value, or a part of it, of a loss."""
        self.sums["/".join(filter(None, [loss, scope]))] += value.detach()

    def read(self, now: Mapping[str, Tensor], ranks: Ranks, *, mean_over_ranks: bool) -> dict[str, float]:
        """The averages, and the values of `now` as they are; begins anew. Reads from the device once.

        mean_over_ranks: whether the ranks' sums are averaged; else they are added up.
        """
        names, sums = list(self.sums), [*self.sums.values()]
        if ranks.size > 1 and sums:
            sums = [*ranks.all_reduce(torch.stack(sums)) / (ranks.size if mean_over_ranks else 1)]
        values = torch.stack([*sums, *now.values()]).tolist()
        averages = {name: value / self.batches[name.partition("/")[2]] for name, value in zip(names, values, strict=False)}
        self.clear()
        return averages | dict(zip(now, values[len(names) :], strict=True))

    def clear(self) -> None:
        """Begins anew."""
        self.sums.clear()
        self.batches.clear()

    def state(self) -> dict[str, Any]:
        """What is saved of them."""
        return {"sums": dict(self.sums), "summed": dict(self.batches)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved `state`."""
        self.sums.update({name: value.to(self.device) for name, value in state["sums"].items()})
        self.batches.update(state["summed"])
