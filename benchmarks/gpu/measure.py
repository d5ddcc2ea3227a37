"""One row of run.py in a process of its own: trains a pack by engine.train and prints JSON lines as it goes, so that a killed row leaves what it has.

    python benchmarks/gpu/measure.py SPEC        started by run.py; SPEC: JSON of {"row", "shape", "folder", "device", "steps"}

The pack's batches pass through phases: some that are not timed; whole steps; the coders' part alone, on activations that stay; the forward
alone; then, none of them timed, steps in which waits are looked for, operations counted and kernels profiled. Evaluation and a save end it, as
they end every run.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoModel, PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1]))

from gpu import peaks, plant
from gpu.kernel_times import marked, profiled
from gpu.phases import Phase, Remembered, Seen, forward_of, in_phases
from gpu.rows import Row, Shape
from gpu.waits import watched
from ourselves.op_cost import Counting
from sae_transcoder.config import Config
from sae_transcoder.config.composer import composed
from sae_transcoder.language_model import loading, model_checks
from sae_transcoder.language_model.weights_dtype import resolve_dtype
from sae_transcoder.launch import packs
from sae_transcoder.preflight import device_memory
from sae_transcoder.preflight.plan import make_plan
from sae_transcoder.preflight.plan_cache import PlanCache
from sae_transcoder.process.memory_errors import is_out_of_memory
from sae_transcoder.training import checkpoint, engine, pack_loop, smaller_packs

SKIP = 5  # steps before the clock starts: kernels are compiled, memory is found, AuxK begins to act
FREQUENT = 8  # ids that are left out, where tokens are


def tell(**found: Any) -> None:
    """One more line for run.py."""
    print(json.dumps(found), file=sys.__stdout__, flush=True)


class Shortage(Exception):
    """The pack does not fit; it is not to be measured in halves."""


class Stretches:
    """A row's phases, each telling what it finds."""

    def __init__(self, row: Row, device: str, steps: int) -> None:
        """steps: how many are timed."""
        self.row, self.device, self.steps = row, device, steps
        self.memory = peaks.Memory(device)
        remembered = Remembered()
        self.phases = [
            Phase(SKIP, self.warming_up),
            Phase(steps, self.whole_steps),
            Phase(1, capture=remembered),
            Phase(steps, lambda: self.coders_alone(remembered), remembered),
            Phase(1, capture=self.model_alone),
            Phase(2, lambda: self.waits(2)),
            Phase(1, self.counted),
            Phase(2, lambda: self.profile(2), marked),
            Phase(1, self.ending),
        ]
        self.batches = sum(phase.steps for phase in self.phases)

    def now(self) -> float:
        """Seconds, once the device has done what it was told."""
        peaks.settle(self.device)
        return time.perf_counter()

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        """Open until the clock starts: first it tells what loading took."""
        tell(loading=self.memory.peaks())
        self.memory.clear_traceback_locals()
        yield

    @contextmanager
    def whole_steps(self) -> Iterator[None]:
        """Steps as a user's."""
        start = self.now()
        yield
        tell(step=(self.now() - start) / self.steps, training=self.memory.peaks())

    @contextmanager
    def coders_alone(self, remembered: Remembered) -> Iterator[None]:
        """Steps without a forward."""
        start = self.now()
        yield
        tell(coders=(self.now() - start) / self.steps)
        remembered.seen = None

    def model_alone(self, *arguments: Any) -> Seen:
        """A forward, made as often as there are timed steps."""
        start = self.now()
        for _ in range(self.steps):
            seen = forward_of(*arguments)
        tell(model=(self.now() - start) / self.steps)
        return seen

    @contextmanager
    def waits(self, steps: int) -> Iterator[None]:
        """Steps in which the processor's waits are noted."""
        with watched(self.device) as places:
            yield
        tell(waits={place: times / steps for place, times in places.items()})

    @contextmanager
    def counted(self) -> Iterator[None]:
        """A step whose operations are counted, none of them compiled."""
        with torch.compiler.set_stance("force_eager"), Counting(torch.device(self.device).type) as counting:
            yield
        tell(parts={name: asdict(cost) for name, cost in counting.parts.items()})

    @contextmanager
    def profile(self, steps: int) -> Iterator[None]:
        """Steps under torch's profiler."""
        with profiled(steps, self.device) as found:
            yield
        tell(**asdict(found))

    @contextmanager
    def ending(self) -> Iterator[None]:
        """The last batch, and what follows it."""
        self.memory.clear_traceback_locals()
        yield
        tell(ending=self.memory.peaks())


def configs(row: Row, folder: Path, device: str, depth: int, steps: int) -> list[Config]:
    """The runs of the pack, of so many optimizer steps; they differ in their seed."""
    base = ["model_type=sae", f"model_name={folder}/model", f"layers=[{depth}]", f"device={device}"]
    base += ["dataset_kind=memmap", f"dataset_name={folder}/tokens.bin", "tokens_dtype=uint32", f"max_seq_length={row.length}"]
    base += ["max_samples=null", "eval_samples=2", "eval_end_to_end=false", f"batch_size={row.sequences}", "grad_acc_steps=1"]
    base += [f"k={row.k}", f"num_latents={row.latents}", f"lr={plant.RATE}", f"max_steps={steps}"]
    base += [
        f"save_dir={folder}/runs",
        "save_best=false",
        f"save_every={steps}",
        f"log_every={steps}",
    ]  # no line of metrics before the end
    base += [f"auxk_alpha={0.03125 if row.dead else 0}", f"dead_feature_threshold={row.tokens}"]
    if row.excluded:
        base += ["exclude_first_tokens=1", f"exclude_tokens={[*range(FREQUENT)]}".replace(" ", "")]
    if row.compiled is not None:
        base.append(f"compile_model={row.compiled}")
    base += row.settings
    return [composed([*base, f"init_seeds=[{seed}]"]) for seed in range(row.runs)]


def random_model(shape: Shape, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The model, frozen; made on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModel.from_config(shape.config(), dtype=dtype).to(device).eval().requires_grad_(False)


def estimated(cfgs: Sequence[Config]) -> None:
    """Tells what the pack needs by the project's estimate, and how a sweep would divide these runs over one device."""
    cache = PlanCache()
    plans = [make_plan(cfg, cache) for cfg in cfgs]
    there = plans[0].available
    refused = there is not None and any(packs.memory([plan]) > there for plan in plans)
    tell(estimate=packs.memory(plans), packed=[len(pack) for pack in packs.group_into_packs(plans, 1)], refused=refused)


def train(row: Row, shape: Shape, folder: Path, device: str, steps: int) -> None:
    """Trains the pack; raises what keeps it from ending, Shortage where it does not fit."""
    stretches = Stretches(row, device, steps)
    shape.config().save_pretrained(folder / "model")
    plant.tokens(shape.vocabulary, (stretches.batches * row.sequences + 2) * row.length).tofile(folder / "tokens.bin")
    cfgs = configs(row, folder, device, shape.layers // 2, stretches.batches)

    def load(cfg: Config, device: torch.device, layers: int | None) -> PreTrainedModel:
        return random_model(replace(shape, layers=layers or shape.layers), device, resolve_dtype(cfg, device))

    def no_room(*_: Any) -> None:
        raise Shortage

    def each(number: int, seen: Seen) -> None:
        if number <= SKIP + steps:
            plant.plant(row, runs, number, seen)
        if number == stretches.batches - 1:
            tell(planted=plant.statistics(runs[0], seen))

    with ExitStack() as stack:
        # What the estimate refuses is tried: whether it was right is what the row says.
        stack.enter_context(patch.object(device_memory, "faults", lambda *_: []))
        stack.enter_context(patch.object(model_checks, "stored_weight_faults", lambda *_: []))  # no weights are stored
        stack.enter_context(patch.object(loading, "load", load))
        for module in (pack_loop, smaller_packs):
            stack.enter_context(patch.object(module, "close_pack", no_room))
        # Copies of the coders are made at the save, and not written.
        stack.enter_context(patch.object(checkpoint, "export", lambda _, target: target.mkdir(parents=True, exist_ok=True)))
        estimated(cfgs)
        runs = stack.enter_context(plant.noticed())
        stack.enter_context(in_phases(stretches.phases, each))
        engine.train(cfgs)


def main(spec: dict[str, Any]) -> None:
    """Measures the row; says how it ended."""
    row, shape = Row(**spec["row"]), Shape(**spec["shape"])
    try:
        with redirect_stdout(sys.stderr):
            train(row, shape, Path(spec["folder"]), spec["device"], spec["steps"])
    except Exception as error:
        if not (isinstance(error, Shortage) or is_out_of_memory(error)):
            raise
        tell(status="out of memory")
    else:
        tell(status="done")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
