"""What does a coder's training step ask of a GPU? Launches, FLOP and bytes, counted without one; before a change and after it.

    python benchmarks/ourselves/arithmetic.py --parts                                                  and which functions ask for it
    git worktree add ../before COMMIT && PYTHONPATH=../before python benchmarks/ourselves/arithmetic.py --json before.json
    python benchmarks/ourselves/arithmetic.py --against before.json                                    both side by side

The project's own step (train_on_batch) runs on tensors of torch's `meta` device, which have shapes and no values, and op_cost.py counts its
operations. What the step reads from the device is answered by what is assumed here, the number of dead latents. Everything is float32, where
a GPU computes products in bfloat16; sparsify's Triton kernels, where a step on CUDA takes them, are counted as the operations that do their
work elsewhere. Nothing is measured: the least time is arithmetic, the sum over the step's functions of what takes longer, FLOP or bytes,
at the rates that are given.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import show
from ourselves.op_cost import Cost, Counting, aten
from sae_transcoder.coder import corrected_coder
from sae_transcoder.config.composer import composed
from sae_transcoder.language_model.forward import Activations
from sae_transcoder.training.batched_training import train_on_batch
from sae_transcoder.training.coder_trainer import CoderTrainer
from sae_transcoder.training.read_ahead import read_ahead

POINT = "layers.0"
DEAD = 0.05  # of the latents, where AuxK acts
STEPS = 3  # the last of which is counted: the first sets biases and makes the optimizer's state


@dataclass(frozen=True)
class Shape:
    """A coder and its batch."""

    width: int
    latents: int
    sequences: int
    length: int = 1024
    k: int = 64


SHAPES = {
    "SmolLM2-135M x8": Shape(576, 8 * 576, 64),
    "SmolLM2-135M x64": Shape(576, 64 * 576, 64),
    "Llama-3-8B 32k": Shape(4096, 32_768, 8),
    "Llama-3-8B 262k": Shape(4096, 262_144, 8),
}


# Tables by which the step decides by the type of a device; what a version of the project does not have is passed over.
BY_DEVICE = ("chunk_sizes.CHUNK_SIZE", "chunk_sizes.SMALL_BATCH", "latent_selection.TWO_STAGES", "sparse_products.PRODUCT_RULES")


def path_of(kind: str) -> ExitStack:
    """While it is open, tensors on `meta` take the path of a step on cpu or cuda."""
    stack = ExitStack()
    for module, name in (table.split(".") for table in BY_DEVICE):
        if find_spec(f"sae_transcoder.coder.{module}") and (
            table := getattr(import_module(f"sae_transcoder.coder.{module}"), name, None)
        ):
            stack.enter_context(patch.dict(table, {"meta": table[kind]}))
    if kind == "cuda" and hasattr(corrected_coder, "PIECE"):  # a version whose top-k asks the tensor whether it lies on a GPU
        stack.enter_context(patch.object(corrected_coder, "largest", lambda preacts, k: preacts.topk(k, dim=-1, sorted=False)))
    stack.enter_context(patch.object(import_module("torch.optim.adam"), "_device_dtype_check_for_fused", lambda *_, **__: None))
    return stack


class Assuming(Counting):
    """Counting on `meta`: what is read from the device is the number of dead latents."""

    def __init__(self, latents: int, dead: int) -> None:
        """A mask of so many latents is set for so many dead ones; every other mask everywhere."""
        super().__init__("meta")
        self.latents, self.dead = latents, dead

    def result(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What the operation returns, also where that depends on values."""
        packet, first = func.overloadpacket, args[0] if args else None

        def places(mask: torch.Tensor, *dims: int) -> torch.Tensor:
            chosen = self.dead if mask.numel() == self.latents else mask.numel()
            return torch.empty(chosen, *dims, dtype=torch.long, device="meta")

        if packet is aten._fused_adam_:  # torch has no rule for its shapes; it returns nothing
            return None
        if packet is aten._local_scalar_dense and first.is_meta:
            return float(self.dead) if first.dtype.is_floating_point else self.dead
        if packet is aten.nonzero and first.is_meta:
            return places(first, first.dim())
        if packet is aten._to_copy and first.is_meta and torch.device(kwargs.get("device") or "meta").type == "cpu":
            return torch.full(first.shape, self.dead, dtype=kwargs.get("dtype") or first.dtype)
        if packet in (aten.index, aten.index_put_):
            args = [first, [places(i) if i is not None and i.dtype == torch.bool else i for i in args[1]], *args[2:]]
        return func(*args, **kwargs)


def last_step(shape: Shape, dead: int, counting: Counting) -> None:
    """Counts a run's last optimizer step of STEPS, in which so many latents are dead, on the device of the mode."""
    batch = shape.sequences * shape.length
    settings = [f"batch_size={shape.sequences}", f"max_seq_length={shape.length}", f"num_latents={shape.latents}", f"k={shape.k}"]
    settings += ["model_type=sae", "model_name=none", "dataset_kind=memmap", "dataset_name=none", "grad_acc_steps=1", "lr=1e-3"]
    settings += [f"dead_feature_threshold={batch}", f"auxk_alpha={0.03125 if dead else 0}"]
    device = torch.device(counting.on)
    run = CoderTrainer(composed(settings), {POINT: shape.width}, shape.sequences * STEPS, device)
    (idle,) = run.tokens_since_fired.values()
    tokens = torch.zeros(shape.sequences, shape.length, dtype=torch.long)
    for left in reversed(range(STEPS)):
        values = torch.randn(shape.sequences, shape.length, shape.width, device=device)
        idle.zero_()
        idle[:dead] = batch + 1
        earlier = Assuming(shape.latents, dead) if device.type == "meta" else nullcontext()
        with earlier if left else counting:
            activations = {POINT: Activations(values, values)}
            read_ahead([run], tokens, activations)
            train_on_batch([run], tokens, activations)


def counted() -> dict[str, dict[str, Cost]]:
    """{step: {function: its cost}} for every shape, without and with AuxK."""
    found = {}
    for name, shape in SHAPES.items():
        for dead in (0, int(DEAD * shape.latents)):
            counting = Assuming(shape.latents, dead)
            with path_of("cuda"):
                last_step(shape, dead, counting)
            found[f"{name}, AuxK with {dead:,} dead" if dead else name] = dict(counting.parts)
    return found


@dataclass(frozen=True)
class Rates:
    """What a GPU does in a second."""

    flop: float
    bytes: float

    def least(self, parts: Mapping[str, Cost]) -> float:
        """Seconds that these functions take at least, one after the other."""
        return sum(max(part.flop / self.flop, part.bytes / self.bytes) for part in parts.values())


HEADINGS = ["launches", "waits", "TFLOP", "GB", "GB by index", "at least, ms"]


def figures(parts: Mapping[str, Cost], rates: Rates) -> list[str]:
    """The cells of a row, under HEADINGS."""
    whole = sum(parts.values(), Cost())
    work = [f"{whole.flop / 1e12:.3g}", f"{whole.bytes / 1e9:,.4g}", f"{whole.gathered / 1e9:,.4g}"]
    return [str(whole.launches), str(whole.waits), *work, f"{1000 * rates.least(parts):.3g}"]


def beside(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """Cells of two rows in one."""
    return [new if old == new else f"{old} to {new}" for old, new in zip(before, after, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", action="store_true", help="also a table of the functions of each step")
    parser.add_argument("--json", type=Path, help="write the counts here")
    parser.add_argument("--against", type=Path, metavar="JSON", help="counts of another version, shown beside")
    parser.add_argument("--tflops", type=float, default=600, help="products a second, in 1e12 FLOP (600)")
    parser.add_argument("--tbs", type=float, default=3, help="memory traffic a second, in 1e12 bytes (3)")
    asked = parser.parse_args()
    rates, found = Rates(asked.tflops * 1e12, asked.tbs * 1e12), counted()
    if asked.json:
        asked.json.write_text(
            json.dumps({step: {name: asdict(cost) for name, cost in parts.items()} for step, parts in found.items()})
        )
    rows = [[step, *figures(parts, rates)] for step, parts in found.items()]
    if asked.against:
        kept = json.loads(asked.against.read_text())
        before = {step: {name: Cost(**cost) for name, cost in parts.items()} for step, parts in kept.items()}
        rows = [[row[0], *(beside(figures(before[row[0]], rates), row[1:]) if row[0] in before else row[1:])] for row in rows]
    title = (
        f"A coder's training step, float32, counted and not measured; at least: at {asked.tflops:g} TFLOP/s and {asked.tbs:g} TB/s"
    )
    show(title, ["step", *HEADINGS], rows, markdown=True)
    for step, parts in found.items() if asked.parts else ():
        own = sorted(parts.items(), key=lambda part: -rates.least(dict([part])))
        show(step, ["function", *HEADINGS], [[name, *figures({name: cost}, rates)] for name, cost in own], markdown=True)


if __name__ == "__main__":
    main()
