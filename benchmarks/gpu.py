"""What does training cost on a GPU? Time, utilisation, memory against the estimate, and synchronisations, at the shapes of two models.

    python benchmarks/gpu.py                    on a GPU, all of it: about half an hour on an H100 (a guess: it has not been run on one)
    python benchmarks/gpu.py --small            tiny shapes, here on a CPU too: whether it works, about 2 minutes

Models of random weights in the shapes of SmolLM2-135M and Llama-3-8B, random tokens; an SAE on the residual stream after the middle layer, k = 64.
First one run with 8 to 64 times as many latents as the model is wide, then packs of 1 to 32 runs of expansion 8. Utilisation: the
arithmetic that a step cannot do without, over the time and the card's dense bfloat16 peak. Memory: what torch allocated at most, beside
the estimate by which runs are refused and packs split. Synchronisations: how often, in steps without a log line, the processor waited
for the GPU, and where.
"""

import argparse
import json
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import common
import numpy as np
import torch
from common import say
from transformers import AutoModel, LlamaConfig, PreTrainedModel

# Dense bfloat16, FLOP/s, from NVIDIA's data sheets; the first that the device's name begins with.
PEAKS = {
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,  # SXM
    "NVIDIA H200": 989e12,
    "NVIDIA A100": 312e12,
}
K = 64
SKIP = 3  # steps before the clock starts: kernels are compiled and memory is found


@dataclass(frozen=True)
class Shape:
    """A language model's sizes, and the batch."""

    width: int
    inner: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    sequences: int
    length: int

    def config(self) -> LlamaConfig:
        """Its config; both models are Llamas."""
        return LlamaConfig(
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            vocab_size=self.vocabulary,
            max_position_embeddings=2048,
        )

    def flops(self, depth: int, latents: int, runs: int) -> float:
        """Of a step: the forward to the end of layer `depth`, and for each coder its product, decode and three sparse gradients."""
        tokens, head = self.sequences * self.length, self.width // self.heads
        layer = 2 * self.width**2 + 2 * self.width * head * self.key_value_heads + 3 * self.width * self.inner
        attention = 2 * self.width * self.length // 2  # causal: half of all pairs
        coder = 2 * tokens * self.width * latents + 4 * 2 * tokens * self.width * K
        return 2 * tokens * (layer + attention) * (depth + 1) + runs * coder


# Sizes as in config.json of HuggingFaceTB/SmolLM2-135M and meta-llama/Meta-Llama-3-8B; batches are ours.
SHAPES = {
    "SmolLM2-135M": Shape(576, 1536, 30, 9, 3, 49152, sequences=64, length=1024),
    "Llama-3-8B": Shape(4096, 14336, 32, 32, 8, 128256, sequences=8, length=1024),
}
SMALL = {"small": Shape(64, 128, 4, 4, 2, 512, sequences=8, length=64)}


def random_model(shape: Shape, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The model, frozen; made on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModel.from_config(shape.config(), dtype=dtype).to(device).eval().requires_grad_(False)


@contextmanager
def synchronisations(on_gpu: bool) -> Iterator[tuple[Any, Any, Counter[str]]]:
    """Yields what begins and what ends the watch, and {place in the code: times that the processor waited}, filled when it closes."""
    places: Counter[str] = Counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mode = torch.cuda.set_sync_debug_mode if on_gpu else lambda _: None
        yield lambda: mode("warn"), lambda: mode("default"), places
        mode("default")
    for warning in caught:
        if "called a synchronizing" in str(warning.message):  # torch's, which also warns of the watch itself
            places[f"{Path(warning.filename).name}:{warning.lineno}"] += 1


def measure(spec: Path) -> None:
    """In a process of its own: trains a pack and prints a line of results."""
    from meter import Meter
    from ours import timed

    from sae_transcoder import engine, heldout, language_model, packs, preflight
    from sae_transcoder.composition import composed

    asked = json.loads(spec.read_text())
    shape, device, steps = Shape(**asked["shape"]), asked["device"], asked["steps"] + SKIP
    folder, depth = spec.parent, shape.layers // 2
    shape.config().save_pretrained(folder / "model")
    ids = np.random.default_rng(0).integers(shape.vocabulary, size=(steps * shape.sequences + 2) * shape.length)
    ids.astype(np.uint32).tofile(folder / "tokens.bin")
    base = ["model_type=sae", f"model_name={folder}/model", "dataset_kind=memmap", f"dataset_name={folder}/tokens.bin"]
    base += ["tokens_dtype=uint32", f"max_seq_length={shape.length}", "max_samples=null", "eval_samples=2", f"layers=[{depth}]"]
    base += [f"batch_size={shape.sequences}", "grad_acc_steps=1", f"max_steps={steps}", f"k={K}", f"device={device}", "lr=1e-3"]
    base += [
        f"expansion_factor={asked['expansion']}",
        "auxk_alpha=0",
        "eval_end_to_end=false",
        "save_best=false",
        f"save_dir={folder}",
    ]
    base += [f"save_every={steps}", f"log_every={steps}"]  # no line of metrics before the end
    if not device.startswith("cuda"):
        base.append("dtype=float32")
    cfgs = [composed([*base, f"init_seeds=[{seed}]"]) for seed in range(asked["runs"])]
    known: preflight.Known = {}
    plans = [preflight.plan(cfg, known) for cfg in cfgs]
    estimate = packs.memory(plans)
    if (there := plans[0].available) is not None and estimate > there:
        print("\n" + json.dumps({"estimate": estimate, "refused": True}))
        return

    def load(cfg: Any, device: torch.device, layers: int | None) -> PreTrainedModel:
        return random_model(replace(shape, layers=layers or shape.layers), device, language_model.resolve_dtype(cfg, device))

    own, meter = heldout.measure, Meter(device)
    with synchronisations(device.startswith("cuda")) as (watch, enough, places):

        def evaluated(*arguments: Any, **named: Any) -> Any:
            enough()
            return own(*arguments, **named)

        with patch.object(language_model, "load", load), patch.object(heldout, "measure", evaluated), timed(meter, SKIP, watch):
            engine.train(cfgs)
    found = meter.found()
    if meter.on_gpu:
        found["peak"] = max(found["peak"], torch.cuda.max_memory_allocated())  # and with the copies at the save
    print("\n" + json.dumps(found | {"estimate": estimate, "places": places}))


def row(name: str, shape: Shape, expansion: int, runs: int, steps: int, device: str) -> list[str]:
    """Measures one pack in a process of its own; its row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "spec.json"
        values = {"shape": vars(shape), "expansion": expansion, "runs": runs, "steps": steps, "device": device}
        spec.write_text(json.dumps(values))
        found = common.process([sys.executable, __file__, "--measure", str(spec)], device)
    head = [name, f"x{expansion}", str(runs)]
    if found.get("refused"):
        return [*head, "does not fit", "", "", "", "", f"{found['estimate'] / 1e9:.2f} GB", "", ""]
    seconds, tokens = found["seconds"] / steps, shape.sequences * shape.length
    flops = shape.flops(shape.layers // 2, expansion * shape.width, runs) / seconds
    card = torch.cuda.get_device_name(device) if device.startswith("cuda") else ""
    peak = next((value for start, value in PEAKS.items() if card.startswith(start)), None)
    share = f"{100 * flops / peak:.1f} %" if peak else "unknown peak" if card else "no GPU"
    waits = ", ".join(f"{place} {times}" for place, times in found["places"].items())
    speed = [
        f"{1000 * seconds:.1f} ms",
        f"{1000 * seconds / runs:.1f} ms",
        f"{runs * tokens / seconds:,.0f}",
        f"{flops / 1e12:.3g}",
        share,
    ]
    memory = [f"{found['estimate'] / 1e9:.2f} GB", f"{found['peak'] / 1e9:.2f} GB"]
    return [*head, *speed, *memory, (waits or "none") if card else "no GPU"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny shapes, on a CPU where there is no GPU")
    parser.add_argument("--steps", type=int, default=20, help="timed optimizer steps (20)")
    parser.add_argument("--expansions", type=int, nargs="+", default=[8, 16, 32, 64], help="of one run (8 16 32 64)")
    parser.add_argument("--packs", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="runs of expansion 8 (1 2 4 8 16 32)")
    parser.add_argument("--only", action="append", choices=list(SHAPES), help="only this model")
    asked = common.asked_or_measured(parser, measure)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not asked.small:
        raise SystemExit("there is no GPU here; --small runs tiny shapes on the CPU")
    shapes = SMALL if asked.small else {name: shape for name, shape in SHAPES.items() if not asked.only or name in asked.only}
    rows = []
    for name, shape in shapes.items():
        for expansion, runs in dict.fromkeys([*((e, 1) for e in asked.expansions), *((8, n) for n in asked.packs)]):
            rows.append(row(name, shape, expansion, runs, asked.steps, device))
            say(" ".join(rows[-1]))
    title = f"{asked.steps} steps, {common.device_name(device)}" + (
        " (no GPU: nothing here is about GPUs)" if device == "cpu" else ""
    )
    headings = ["shapes of", "latents", "runs", "step", "of a run", "tokens/s x runs", "TFLOP/s", "of the peak"]
    headings += ["estimated", "peak memory", "synchronisations, where"]
    common.show(title, headings, rows, markdown=asked.markdown)


if __name__ == "__main__":
    main()
