"""Which rank this process is among those that train one run together, and what ranks say to each other.

torchrun, or the SLURM launcher, starts a process for each rank and says in the environment which it is. Whatever steers training goes
over gloo, so that no GPU is waited for; sums of activations and gradients go from GPU to GPU over nccl. A rank that fails leaves its
message in the store where the ranks found each other, and breaks its gloo connections; on every other rank a thread that watches the store
breaks off what waits on nccl. They end with that message. torch is imported where ranks meet.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from sae_transcoder.config import ConfigError, composition
from sae_transcoder.process.broken_device import FAILED

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
MEETING = timedelta(minutes=10)  # until which all ranks must have come
WAITING = timedelta(days=30)  # a rank may evaluate for hours while the others wait
SPOKEN = 5.0  # seconds in which the first rank says why a run is refused
LOST = "another rank is gone without a word"
TOLD = timedelta(seconds=10)  # in which the first rank says why another one failed
LOOKS = 1.0  # seconds between two looks at whether another rank has failed


class PeerFailed(Exception):
    """Another rank failed, and this one ends with it; the message is that rank's own."""

    @property
    def blameless(self) -> bool:
        """Whether that rank left no message, or its GPU failed: nothing is known to be wrong with the run, which can go on from its last
        save."""
        return any(text in str(self) for text in (LOST, FAILED))


def world_size() -> int:
    """Ranks that train together, as the environment says; 1 for a process alone."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in VARIABLES) else 1


def rank() -> int:
    """This process's rank; the first, 0, is the one that writes and speaks."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def local_rank() -> int:
    """This process's place among the ranks of its machine."""
    return int(os.environ["LOCAL_RANK"]) if world_size() > 1 else 0


def refuse(faults: Sequence[str]) -> NoReturn:
    """Ends with exit code 1; of several ranks the first one says why. torchrun ends all ranks once one has ended, so the others wait."""
    if rank() > 0:
        time.sleep(SPOKEN)
        sys.exit(1)
    composition.refuse(faults)


def part(start: int, end: int, rank: int, size: int) -> slice:
    """The rows of `start` to `end` that one of `size` ranks reads; all ranks' parts in order are all rows, each once."""
    rows = end - start
    return slice(start + rows * rank // size, start + rows * (rank + 1) // size)


def shares(sizes: Mapping[str, int], count: int) -> list[list[str]]:
    """Names of hookpoints for each of `count` ranks, of about equal sums of `sizes` {name: parameters}, each in the order given.

    The first rank has the first name. None is empty where there are as many names as ranks.
    """
    found: list[list[str]] = [[] for _ in range(count)]
    for name in sorted(sizes, key=lambda n: -sizes[n]):  # largest first, each to the rank that has least
        min(found, key=lambda share: sum(map(sizes.__getitem__, share))).append(name)
    order = list(sizes)
    found.sort(key=lambda share: order[0] not in share)
    return [sorted(share, key=order.index) for share in found]


class Ranks:
    """The ranks that train together. Every method but `announce` is called by all of them, in the same order; alone it costs nothing.

    They raise PeerFailed where another rank has failed.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size
        self.leads = rank == 0
        self.fault: str | None = None  # why some rank failed
        self.control: Any = None
        self.data: Any = None
        self.watching: threading.Thread | None = None
        self.parted = threading.Event()

    def meet(self) -> None:
        """Finds the other ranks. Raises ConfigError where some have not come in time."""
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        try:
            self.store, _, _ = next(rendezvous("env://", timeout=MEETING))
            self.store.set(f"here{self.rank}", "")
            self.store.wait([f"here{rank}" for rank in range(self.size)], MEETING)
        except RuntimeError as error:
            where = f"MASTER_ADDR={os.environ['MASTER_ADDR']}, MASTER_PORT={os.environ['MASTER_PORT']}"
            raise ConfigError(
                f"WORLD_SIZE={self.size}: not all ranks met at {where} within {MEETING} ({str(error).splitlines()[0]}); "
                "start that many processes that reach it, or unset WORLD_SIZE to train in one"
            ) from error
        dist.init_process_group("gloo", store=self.store, rank=self.rank, world_size=self.size, timeout=WAITING)
        self.control = dist.new_group(backend="gloo", timeout=WAITING)
        atexit.register(self.part_ways)

    def connect(self, device: torch.device) -> None:
        """Opens the way for tensors of this device, and watches over what waits on it; once."""
        if self.size > 1 and self.data is None:
            import torch.distributed as dist

            with self.talking():
                self.data = dist.new_group(backend="nccl" if device.type == "cuda" else "gloo", timeout=WAITING)
            self.watching = threading.Thread(target=self.watch, daemon=True)
            self.watching.start()

    def watch(self) -> None:
        """Looks for the failure of a rank as long as ranks are together, in a thread of its own; then breaks off the sums under way, which
        end as if they were done."""
        while not self.parted.wait(LOOKS):
            try:
                if not self.store.check(["fault"]):
                    continue
                self.fault = self.fault or json.loads(self.store.get("fault"))["why"]
            except RuntimeError as error:  # the store went with the rank that kept it
                self.fault = self.fault or f"{LOST} ({str(error).splitlines()[0]})"
            if (data := self.data) is not None:
                data.abort()  # gloo's end with the connections of the rank that failed
            return

    def part_ways(self) -> None:
        """Closes the connections at the end of the process."""
        self.parted.set()
        if self.watching is not None:
            self.watching.join()
        if self.fault is None:
            import torch.distributed as dist

            self.control = self.data = None  # what holds threads must not wait for the end of the interpreter
            dist.destroy_process_group()
            del self.store

    @contextmanager
    def talking(self) -> Iterator[None]:
        """A connection that breaks while it is open is the failure of another rank."""
        import torch

        self.refuse_broken()
        try:
            yield
        except (torch.OutOfMemoryError, torch.AcceleratorError):  # this rank's own GPU
            raise
        except RuntimeError as error:  # gloo has no exception of its own
            raise PeerFailed(self.reason(error)) from None

    def refuse_broken(self) -> None:
        """Raises PeerFailed where another rank has failed."""
        if self.fault is not None:
            raise PeerFailed(self.fault)

    def settle(self, device: torch.device) -> None:
        """Waits for the sums under way. Raises PeerFailed where they were broken off: nothing computed with them is to be kept."""
        if self.size > 1:
            import torch

            if device.type == "cuda":
                torch.cuda.synchronize(device)
            self.refuse_broken()

    def reason(self, error: Exception) -> str:
        """Why a connection broke, as the rank that failed first says it."""
        lost = f"{LOST}: killed, or its node is down ({str(error).splitlines()[0].partition('. ')[0]})"
        try:
            # The first word stands: what a rank that was broken off says of it comes later.
            self.store.compare_set("fault", "", json.dumps({"why": lost, "trace": ""}))
            self.fault = json.loads(self.store.get("fault"))["why"]
        except RuntimeError:  # the store went with the rank that kept it
            self.fault = lost
        return self.fault

    def trace(self) -> str:
        """The traceback of the rank that failed first; nothing where it left none."""
        try:
            return json.loads(self.store.get("fault"))["trace"]
        except RuntimeError:
            return ""

    def announce(self, error: BaseException, why: str) -> bool:
        """Tells the other ranks why this one fails, and breaks off what they wait in; once.

        Returns whether the first rank takes it upon itself to say so.
        """
        if self.size == 1 or self.control is None:
            return self.leads
        import torch.distributed as dist

        own = self.fault is None
        self.fault = self.fault or f"rank {self.rank}: {why}"
        trace = "".join(traceback.format_exception(error))
        try:
            self.store.compare_set("fault", "", json.dumps({"why": self.fault, "trace": trace}))
            dist.destroy_process_group(self.control)
            self.control = None
            if self.data is not None and dist.get_backend(self.data) == "gloo":  # nccl's would wait for what is under way
                dist.destroy_process_group(self.data)
                self.data = None
            if own and not self.leads:
                self.store.wait(["told"], TOLD)
        except RuntimeError:
            return self.leads
        return True

    def told(self) -> None:
        """The first rank has said why a rank failed; the others may go."""
        if self.size > 1 and self.leads:
            try:
                self.store.set("told", "")
            except RuntimeError:  # the store is gone, and whoever waited with it
                return

    def gather(self, value: T) -> list[T]:
        """What each rank says, in order."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        with self.talking():
            dist.all_gather_object(found, value, group=self.control)
        return found

    def from_first(self, value: T) -> T:
        """What the first rank says."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        said: list[Any] = [value if self.leads else None]
        with self.talking():
            dist.broadcast_object_list(said, src=0, group=self.control)
        return said[0]

    def to_first(self, value: T | None, rank: int) -> T | None:
        """What `rank` hands to the first one, which gets it; None on all others. Called by these two at least."""
        if rank == 0:
            return value if self.leads else None
        import torch.distributed as dist

        box: list[Any] = [value]
        with self.talking():
            if self.rank == rank:
                dist.send_object_list(box, dst=0, group=self.control)
            elif self.leads:
                dist.recv_object_list(box, src=rank, group=self.control)
        return box[0] if self.leads else None

    def first_then_others(self, action: Callable[[], T]) -> T:
        """Acts on the first rank, and once that is done on the others: what the first one prepares, they find."""
        if not self.leads:
            self.gather(None)
        result = action()
        if self.leads:
            self.gather(None)
        return result

    def totals(self, values: Sequence[int]) -> list[int]:
        """Sums of integers over ranks."""
        return self._reduced(values, "SUM")

    def largest(self, value: int) -> int:
        """The largest of all ranks' integers."""
        return self._reduced([value], "MAX")[0]

    def _reduced(self, values: Sequence[int], how: str) -> list[int]:
        if self.size == 1:
            return list(values)
        import torch
        import torch.distributed as dist

        reduced = torch.tensor(values, dtype=torch.int64)
        with self.talking():
            dist.all_reduce(reduced, getattr(dist.ReduceOp, how), group=self.control)
        return reduced.tolist()

    def add(self, values: Tensor) -> Tensor:
        """Sums a tensor over ranks, in place; the same bits on each. Goes over the way that `connect` opened."""
        if self.size > 1:
            import torch.distributed as dist

            with self.talking():
                dist.all_reduce(values, group=self.data)
        return values

    def concatenated(self, values: Tensor) -> Tensor:
        """Tensors of one shape, one after the other along their first axis."""
        if self.size == 1:
            return values
        import torch
        import torch.distributed as dist

        found = [torch.empty_like(values) for _ in range(self.size)]
        with self.talking():
            dist.all_gather(found, values, group=self.data)
        return torch.cat(found)


ALONE = Ranks()
_met: Ranks | None = None


def meet() -> Ranks:
    """The ranks that this process belongs to, met at the first call; ALONE for a process alone."""
    global _met
    if world_size() == 1:
        return ALONE
    if _met is None:
        met = Ranks(rank(), world_size())
        met.meet()
        _met = met
    return _met
