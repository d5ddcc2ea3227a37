"""What ranks exchange: values of rank 0, of each rank, sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from sae_transcoder.distributed.connection import Connection
from sae_transcoder.distributed.environment import rank, world_size

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class Ranks(Connection):
    """The ranks that train together. Each method is called by all of them, in the same order; in a process alone it costs nothing."""

    def all_gather(self, value: T) -> list[T]:
        """The value of each rank, in order."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        with self.exchange():
            dist.all_gather_object(values, value, group=self.control_group)
        return values

    def broadcast(self, value: T) -> T:
        """The value of rank 0."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        values: list[Any] = [value if self.leads else None]
        with self.exchange():
            dist.broadcast_object_list(values, src=0, group=self.control_group)
        return values[0]

    def send_to_first(self, value: T | None, source: int) -> T | None:
        """Sends the value of rank `source` to rank 0, which returns it; None on all others. Called by these two at least."""
        if source == 0:
            return value if self.leads else None
        import torch.distributed as dist

        values: list[Any] = [value]
        with self.exchange():
            if self.rank == source:
                dist.send_object_list(values, dst=0, group=self.control_group)
            elif self.leads:
                dist.recv_object_list(values, src=source, group=self.control_group)
        return values[0] if self.leads else None

    def first_then_others(self, action: Callable[[], T]) -> T:
        """Calls `action` on rank 0, and once it has returned on the others, which find what rank 0 prepared."""
        if not self.leads:
            self.all_gather(None)
        result = action()
        if self.leads:
            self.all_gather(None)
        return result

    def sum_integers(self, values: Sequence[int]) -> list[int]:
        """The sum over ranks of each integer."""
        return self._reduced(values, "SUM")

    def max_integer(self, value: int) -> int:
        """The largest of all ranks' integers."""
        return self._reduced([value], "MAX")[0]

    def _reduced(self, values: Sequence[int], operation: str) -> list[int]:
        if self.size == 1:
            return list(values)
        import torch
        import torch.distributed as dist

        reduced = torch.tensor(values, dtype=torch.int64)
        with self.exchange():
            dist.all_reduce(reduced, getattr(dist.ReduceOp, operation), group=self.control_group)
        return reduced.tolist()

    def all_reduce(self, values: Tensor) -> Tensor:
        """Sums a tensor over ranks in place, to the same bits on each; after `connect`."""
        if self.size > 1:
            import torch.distributed as dist

            with self.exchange():
                dist.all_reduce(values, group=self.data_group)
        return values

    def all_gather_tensor(self, values: Tensor) -> Tensor:
        """The tensors of all ranks, of one shape, concatenated along their first axis; after `connect`."""
        if self.size == 1:
            return values
        import torch
        import torch.distributed as dist

        gathered = [torch.empty_like(values) for _ in range(self.size)]
        with self.exchange():
            dist.all_gather(gathered, values, group=self.data_group)
        return torch.cat(gathered)


ALONE = Ranks()
_met: Ranks | None = None


def meet() -> Ranks:
    """The ranks that this process belongs to, connected at the first call; ALONE for a process alone."""
    global _met
    if world_size() == 1:
        return ALONE
    if _met is None:
        ranks = Ranks(rank(), world_size())
        ranks.meet()
        _met = ranks
    return _met
