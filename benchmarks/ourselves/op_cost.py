"""What torch's operations ask of a device, counted as they are dispatched: launches, arithmetic, bytes, and values that the processor waits for.

Estimates, for any device and without one (tensors on `meta`). An operation that is no view counts as one kernel launch, though some (sort, top-k)
launch several. Arithmetic is that of products, of embedding_bag and of scattered sums; a multiplication and an addition count as two. Bytes are
those of an operation's inputs and outputs, each read or written once, and of a table that is read by index those that are read of it; `gathered`
counts such rows as often as they are read, which is what passes through the cache.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


@dataclass(frozen=True)
class Cost:
    """Of some operations: launches, floating-point operations, bytes, bytes of rows read or written by index, and waits."""

    launches: int = 0
    flop: int = 0
    bytes: int = 0
    gathered: int = 0
    waits: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


# Operations without a kernel that are no views.
FREE = {aten._unsafe_view, aten.empty, aten.empty_like, aten.new_empty, aten.empty_strided, aten.new_empty_strided, aten.lift_fresh}
FREE |= {aten.resize_, aten.set_}
# The processor needs their result, or how large it is, before it goes on.
WAITS = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten.equal,
    aten._unique2,
    aten.unique_consecutive,
    aten.bincount,
}
OVERWRITE = {aten.fill_, aten.zero_, aten.copy_, aten.scatter_, aten.index_put_, aten.index_fill_}  # do not read what they write to
READ_ONLY = {aten._fused_adam_: {"grads"}}  # arguments that a schema says are written, and are not


def _entries(indexed: Tensor, indices: Sequence[Tensor | None]) -> int:
    """Entries of `indexed` at these indices of its first dimensions; a mask may choose all."""
    given = [index for index in indices if index is not None]
    if any(index.dtype == torch.bool for index in given):
        return indexed.numel()
    chosen = prod(torch.broadcast_shapes(*(index.shape for index in given)))
    return chosen * indexed.numel() // prod(n for n, index in zip(indexed.shape, indices, strict=False) if index is not None)


# {operation: entries of its first argument but one, or of the first, that it reads or writes by index, by its arguments}
TOUCHED: dict[Any, Callable[..., int]] = {
    aten._embedding_bag: lambda table, indices, *_: indices.numel() * table.shape[1],
    aten._embedding_bag_forward_only: lambda table, indices, *_: indices.numel() * table.shape[1],
    aten._embedding_bag_per_sample_weights_backward: lambda grad, table, indices, *_: indices.numel() * table.shape[1],
    aten.embedding: lambda table, indices, *_: indices.numel() * table.shape[1],
    aten.index: _entries,
    aten.index_put_: lambda table, indices, *_: _entries(table, indices),
    aten.index_select: lambda table, dim, index: index.numel() * table.numel() // max(1, table.shape[dim]),
    aten.index_add_: lambda table, dim, index, added, **_: added.numel(),
    aten.index_fill_: lambda table, dim, index, *_: index.numel() * table.numel() // max(1, table.shape[dim]),
    aten.gather: lambda table, dim, index, **_: index.numel(),
    aten.scatter_: lambda table, dim, index, *_: index.numel(),
    aten.scatter_add_: lambda table, dim, index, *_: index.numel(),
}
SECOND = {aten._embedding_bag_per_sample_weights_backward}  # whose table is the second argument
# {operation: floating-point operations for each entry touched}
SUMS = {aten._embedding_bag: 2, aten._embedding_bag_forward_only: 2, aten._embedding_bag_per_sample_weights_backward: 2}
SUMS |= {aten.index_add_: 1, aten.scatter_add_: 1}
# Of torch's formulas some know no keys that several heads share. Causal attention counts as if it were whole.
ATTENTION = {
    aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_efficient_attention,
    aten._scaled_dot_product_cudnn_attention,
    aten._scaled_dot_product_flash_attention_for_cpu,
}


def tensors(values: Any) -> Iterator[Tensor]:
    """The tensors among arguments or results, lists included."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors(value)


def size(tensor: Tensor) -> int:
    """Bytes."""
    return tensor.numel() * tensor.element_size()


def waits(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> bool:
    """Whether the processor waits for the device at this operation: for a value, for how many entries of a mask are set, for a copy."""
    packet = func.overloadpacket
    if packet in (aten.index, aten.index_put_):
        filled = (
            packet is aten.index_put_ and args[2].numel() == 1 and not any(args[3:])
        )  # one value where a mask is set: no count is needed
        return not filled and any(index.dtype == torch.bool for index in tensors(args[1]))
    if packet in (aten._to_copy, aten.copy_):
        across = len({t.device.type for t in (*tensors(args), result)}) > 1
        return across and not (kwargs.get("non_blocking") or (packet is aten.copy_ and len(args) > 2 and args[2]))
    return packet in WAITS


def cost(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, on: str) -> Cost:
    """Of one operation on a device of type `on`."""
    packet = func.overloadpacket
    free = func.is_view or packet in FREE or torch.Tag.inplace_view in func.tags or func.namespace in ("prim", "profiler")
    if free or not any(t.device.type == on for t in tensors([*args, *kwargs.values(), result])):
        return Cost()
    given = list(zip(func._schema.arguments, args, strict=False))
    given += [(argument, kwargs[argument.name]) for argument in func._schema.arguments if argument.name in kwargs]
    read, written = [], []
    for argument, value in given:
        changed = argument.is_write and argument.name not in READ_ONLY.get(packet, ())
        written += tensors(value) if changed else []
        read += [] if changed and packet in OVERWRITE else tensors(value)
    mine = {id(t) for t in written}
    written += [t for t in tensors(result) if id(t) not in mine]
    moved, gathered, flop = sum(map(size, read)) + sum(map(size, written)), 0, 0
    if packet in TOUCHED:
        table, touched = args[packet in SECOND], TOUCHED[packet](*args, **kwargs)
        gathered = touched * table.element_size()
        passes = sum(t is table for t in (*read, *written))
        moved -= passes * max(0, size(table) - gathered)
        flop = SUMS.get(packet, 0) * touched
    elif packet in ATTENTION:
        query, key, value = args[:3]
        flop = 2 * query.numel() // query.shape[-1] * key.shape[-2] * (key.shape[-1] + value.shape[-1])
    elif packet in flop_registry:
        flop = flop_registry[packet](*args, **kwargs, out_val=result)
    return Cost(1, flop, moved, gathered, int(waits(func, args, kwargs, result)))


PROGRAMS = {"sae_transcoder", "sparsify"}  # whose functions are named


def caller() -> str:
    """The function of this project or of sparsify that has come to the current operation."""
    frame = sys._getframe(1)
    while frame := frame.f_back:  # type: ignore[assignment]
        package, _, module = frame.f_globals.get("__name__", "").partition(".")
        if package in PROGRAMS:
            return f"{module}.{frame.f_code.co_qualname.partition('.<locals>')[0]}"
    return "torch's own backward"  # on a GPU a thread of its own


class Counting(TorchDispatchMode):
    """While it is open, sums up what operations on devices of type `on` cost: `parts` {function that calls them: cost}."""

    def __init__(self, on: str) -> None:
        super().__init__()
        self.on = on
        self.parts: dict[str, Cost] = defaultdict(Cost)

    @property
    def total(self) -> Cost:
        """Of all operations so far."""
        return sum(self.parts.values(), Cost())

    def result(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What the operation returns."""
        return func(*args, **kwargs)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = self.result(func, args, kwargs)
        own = cost(func, args, kwargs, result, self.on)
        if own.launches:
            self.parts[caller()] += own
        return result
