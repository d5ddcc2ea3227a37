"""How work is divided among ranks."""

from collections.abc import Mapping


def rank_rows(start: int, end: int, rank: int, size: int) -> slice:
    """The rows of `start` to `end` that one of `size` ranks reads; all ranks' slices in order are all rows, each once."""
    rows = end - start
    return slice(start + rows * rank // size, start + rows * (rank + 1) // size)


def split_hookpoints(num_parameters: Mapping[str, int], num_ranks: int) -> list[list[str]]:
    """The hookpoints of each rank, in the order of `num_parameters` {hookpoint: parameters of its coders}, with about equal sums.

    Rank 0 has the first hookpoint. No rank is without one where there are as many hookpoints as ranks.
    """
    by_rank: list[list[str]] = [[] for _ in range(num_ranks)]
    for point in sorted(num_parameters, key=lambda p: -num_parameters[p]):  # largest first, each to the rank that has least
        min(by_rank, key=lambda points: sum(map(num_parameters.__getitem__, points))).append(point)
    order = list(num_parameters)
    by_rank.sort(key=lambda points: order[0] not in points)
    return [sorted(points, key=order.index) for points in by_rank]
