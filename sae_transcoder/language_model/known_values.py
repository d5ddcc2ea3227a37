"""Values beside shapes: in a forward without weights, what follows from the token ids alone is computed all the same.

A forward on fake tensors knows shapes and number formats only. Positions, masks and other things that follow from the ids decide whether it looks
rows up beyond a table's end, and which way it goes; with them known, it does what the real one will do.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

aten = torch.ops.aten
MOST = 2**22  # elements of a known tensor: masks of longer sequences stay unknown
UNKNOWN = (DataDependentOutputException, DynamicOutputShapeException)  # what a fake tensor raises where its values are asked for
MAKERS = {aten.arange, aten.ones, aten.zeros, aten.full, aten.scalar_tensor}  # operators that make values from no tensor
# {operator that looks rows up: where the table, the dimension and the row numbers stand among its arguments}
LOOKUPS: dict[Any, Callable[..., list[tuple[Tensor, int, Tensor]]]] = {
    aten.embedding: lambda table, rows, *_, **__: [(table, 0, rows)],
    aten.index_select: lambda table, dim, rows: [(table, dim, rows)],
    aten.index: lambda table, rows: [(table, dim, r) for dim, r in enumerate(rows) if r is not None and r.dtype == torch.int64],
}


class BeyondTable(Exception):
    """The forward asks for the row numbered `asked` of a table of `rows` rows."""

    def __init__(self, rows: int, asked: int):
        super().__init__(f"a table of {rows} rows, asked for row {asked}")
        self.rows, self.asked = rows, asked


class KnownValues(TorchDispatchMode):
    """While open, above a FakeTensorMode, computes the values of every small tensor that follows from known ones.

    A forward that asks for a known value gets it. Raises BeyondTable where one is a row number beyond a table's end.
    """

    def __init__(self, fake_mode: FakeTensorMode):
        super().__init__()
        self.fake_mode = fake_mode
        self.values = WeakIdKeyDictionary()

    def fake(self, value: Tensor) -> Tensor:
        """A fake tensor in place of `value`, which is known."""
        with unset_fake_temporarily():
            own = value.clone()
        shape_only = self.fake_mode.from_tensor(own)
        self.values[shape_only] = own
        return shape_only

    def known(self, tensor: Tensor) -> Tensor | None:
        """The values of a tensor; None where they are not known."""
        return self.values.get(tensor) if isinstance(tensor, FakeTensor) else tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Runs an operator on shapes, and where its arguments are known on their values too."""
        kwargs = kwargs or {}
        if find := LOOKUPS.get(func.overloadpacket):
            self.check_rows(find(*args, **kwargs))
        if (
            func.overloadpacket is aten._grouped_mm and args[0].dtype != torch.bfloat16
        ):  # on shapes, torch refuses what its kernels take
            return func(args[0].bfloat16(), args[1].bfloat16(), *args[2:], **kwargs).to(args[0].dtype)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        random = torch.Tag.nondeterministic_seeded in func.tags
        if random or not (all(self.known(t) is not None for t in tensors) if tensors else func.overloadpacket in MAKERS):
            if func._schema.is_mutable and any(self.known(t) is not None for t in tensors):
                self.values.clear()  # it may have changed any of them
            return func(*args, **kwargs)
        return self.with_values(func, args, kwargs)

    def with_values(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The result of an operator whose arguments are all known, with its values."""
        try:
            result = func(*args, **kwargs)
        except UNKNOWN:
            return tree_map(lambda leaf: self.fake(leaf) if isinstance(leaf, Tensor) else leaf, self.on_values(func, args, kwargs))
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if sum(output.numel() for output in outputs) <= MOST:
            values = [leaf for leaf in tree_leaves(self.on_values(func, args, kwargs)) if isinstance(leaf, Tensor)]
            for output, value in zip(outputs, values, strict=True):
                self.values[output] = value
        elif func._schema.is_mutable:
            self.values.clear()
        return result

    def on_values(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The operator on the values alone."""
        with unset_fake_temporarily():
            real_args, real_kwargs = tree_map(lambda leaf: self.known(leaf) if isinstance(leaf, Tensor) else leaf, (args, kwargs))
            return func(*real_args, **real_kwargs)

    def check_rows(self, lookups: list[tuple[Tensor, int, Tensor]]) -> None:
        """Raises BeyondTable where the largest row number of a look-up is known, and too large."""
        for table, dim, rows in lookups:
            if (known := self.known(rows)) is None or not known.numel():
                continue
            with unset_fake_temporarily():
                asked = int(known.max())
            if asked >= table.shape[dim]:
                raise BeyondTable(table.shape[dim], asked)
