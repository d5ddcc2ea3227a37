"""How ranks connect, and how all end when one fails.

Control messages use gloo and never wait for a GPU; sums of activations and gradients go from GPU to GPU over nccl. A rank that fails writes
why to the store where the ranks met, and closes its gloo connections. On every other rank a thread that watches the store aborts what waits
on nccl. The others then end with the same message.
"""

from __future__ import annotations

import atexit
import json
import os
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sae_transcoder.config import ConfigError
from sae_transcoder.process.broken_device import FAILED

if TYPE_CHECKING:
    import torch

MEETING_TIMEOUT = timedelta(minutes=10)  # in which all ranks must come
PEER_TIMEOUT = timedelta(days=30)  # a rank may evaluate for hours while the others wait
ACKNOWLEDGE_TIMEOUT = timedelta(seconds=10)  # in which rank 0 reports why another rank failed
WATCH_SECONDS = 1.0  # between two looks at whether another rank has failed
LOST = "another rank is gone without a word"


class PeerFailed(Exception):
    """Another rank failed, and this one ends with it; the message is that rank's own."""

    @property
    def is_resumable(self) -> bool:
        """Whether the run itself did not fail and can continue from its last save: that rank left no message, or its GPU failed."""
        return any(text in str(self) for text in (LOST, FAILED))


class Connection:
    """This rank's connections to the others. Methods raise PeerFailed where another rank has failed."""

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size
        self.leads = rank == 0
        self.failure: str | None = None  # why some rank failed
        self.control_group: Any = None  # gloo
        self.data_group: Any = None  # nccl between GPUs
        self.watcher: threading.Thread | None = None
        self.closed = threading.Event()

    def meet(self) -> None:
        """Finds the other ranks. Raises ConfigError where some have not come in time."""
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        try:
            self.store, _, _ = next(rendezvous("env://", timeout=MEETING_TIMEOUT))
            self.store.set(f"here{self.rank}", "")
            self.store.wait([f"here{rank}" for rank in range(self.size)], MEETING_TIMEOUT)
        except RuntimeError as error:
            where = f"MASTER_ADDR={os.environ['MASTER_ADDR']}, MASTER_PORT={os.environ['MASTER_PORT']}"
            raise ConfigError(
                f"WORLD_SIZE={self.size}: not all ranks met at {where} within {MEETING_TIMEOUT} ({str(error).splitlines()[0]}); "
                "start that many processes that reach it, or unset WORLD_SIZE to train in one"
            ) from error
        dist.init_process_group("gloo", store=self.store, rank=self.rank, world_size=self.size, timeout=PEER_TIMEOUT)
        self.control_group = dist.new_group(backend="gloo", timeout=PEER_TIMEOUT)
        atexit.register(self.close)

    def connect(self, device: torch.device) -> None:
        """Opens the connection for tensors on this device, and watches for the failure of other ranks; once."""
        if self.size > 1 and self.data_group is None:
            import torch.distributed as dist

            with self.exchange():
                self.data_group = dist.new_group(backend="nccl" if device.type == "cuda" else "gloo", timeout=PEER_TIMEOUT)
            self.watcher = threading.Thread(target=self.watch, daemon=True)
            self.watcher.start()

    def watch(self) -> None:
        """Waits in a thread of its own for the failure of another rank; then aborts the sums under way, which end as if they were done."""
        while not self.closed.wait(WATCH_SECONDS):
            try:
                if not self.store.check(["fault"]):
                    continue
                self.failure = self.failure or json.loads(self.store.get("fault"))["why"]
            except RuntimeError as error:  # the store went with the rank that kept it
                self.failure = self.failure or f"{LOST} ({str(error).splitlines()[0]})"
            if (data_group := self.data_group) is not None:
                data_group.abort()  # gloo's sums end when the failed rank closes its connections
            return

    def close(self) -> None:
        """Closes the connections at the end of the process."""
        self.closed.set()
        if self.watcher is not None:
            self.watcher.join()
        if self.failure is None:
            import torch.distributed as dist

            self.control_group = self.data_group = None  # groups hold threads: release them before the interpreter ends
            dist.destroy_process_group()
            del self.store

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """Raises PeerFailed where a connection breaks while it is open."""
        import torch

        self.raise_if_peer_failed()
        try:
            yield
        except (torch.OutOfMemoryError, torch.AcceleratorError):  # this rank's own GPU
            raise
        except RuntimeError as error:  # gloo has no exception of its own
            raise PeerFailed(self.reason(error)) from None

    def raise_if_peer_failed(self) -> None:
        """Raises PeerFailed where another rank has failed."""
        if self.failure is not None:
            raise PeerFailed(self.failure)

    def synchronize(self, device: torch.device) -> None:
        """Waits for the sums under way. Raises PeerFailed where they were aborted: nothing computed with them may be kept."""
        if self.size > 1:
            import torch

            if device.type == "cuda":
                torch.cuda.synchronize(device)
            self.raise_if_peer_failed()

    def reason(self, error: Exception) -> str:
        """Why a connection broke, in the words of the rank that failed first."""
        lost = f"{LOST}: killed, or its node is down ({str(error).splitlines()[0].partition('. ')[0]})"
        try:
            # The first message stays: a rank whose connection was closed by a failure reports it later.
            self.store.compare_set("fault", "", json.dumps({"why": lost, "trace": ""}))
            self.failure = json.loads(self.store.get("fault"))["why"]
        except RuntimeError:  # the store went with the rank that kept it
            self.failure = lost
        return self.failure

    def trace(self) -> str:
        """The traceback of the rank that failed first; empty where it left none."""
        try:
            return json.loads(self.store.get("fault"))["trace"]
        except RuntimeError:
            return ""

    def announce(self, error: BaseException, why: str) -> bool:
        """Tells the other ranks why this one fails, and closes the connections they wait on; once.

        Returns whether rank 0 reports the failure.
        """
        if self.size == 1 or self.control_group is None:
            return self.leads
        import torch.distributed as dist

        is_first = self.failure is None
        self.failure = self.failure or f"rank {self.rank}: {why}"
        trace = "".join(traceback.format_exception(error))
        try:
            self.store.compare_set("fault", "", json.dumps({"why": self.failure, "trace": trace}))
            dist.destroy_process_group(self.control_group)
            self.control_group = None
            # destroying nccl's would wait for the sums under way.
            if self.data_group is not None and dist.get_backend(self.data_group) == "gloo":
                dist.destroy_process_group(self.data_group)
                self.data_group = None
            if is_first and not self.leads:
                self.store.wait(["told"], ACKNOWLEDGE_TIMEOUT)
        except RuntimeError:
            return self.leads
        return True

    def acknowledge_failure(self) -> None:
        """Called by rank 0 once it has reported the failure: the rank that failed may end."""
        if self.size > 1 and self.leads:
            try:
                self.store.set("told", "")
            except RuntimeError:  # the store is gone, and whoever waited with it
                return
