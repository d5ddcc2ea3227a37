"""Another program on the work of a row of run.py: writes the same model and tokens, and has the program's own script train on them.

    python benchmarks/gpu/other_programs.py SPEC   by run.py; SPEC: JSON of {"contender", "python", "row", "shape", "folder", "device", "steps"}

The program is imported by the interpreter `python`: that of its environment (peers/environments.py), or this one where it can be imported here.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import SCRIPTS
from contenders.meter import Coder, Job
from gpu import plant
from gpu.measure import SKIP, tell
from gpu.rows import Row, Shape
from sae_transcoder.language_model.loading import DEMO


def prepared(row: Row, shape: Shape, folder: Path, device: str, steps: int) -> Job:
    """Writes model and tokens; what the program is to do with them. Nothing is logged, as in the rows."""
    dtype = "bfloat16" if device.startswith("cuda") else "float32"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(shape.config(), dtype=getattr(torch, dtype)).save_pretrained(folder / "model")
    for file in DEMO.glob("tokenizer*"):  # a tokenizer is loaded, and has nothing to do
        shutil.copy(file, folder / "model")
    ids = plant.tokens(shape.vocabulary, steps * row.tokens).astype(np.int64)
    np.save(folder / "tokens.npy", ids.reshape(-1, row.length))
    coders = [Coder(row.k, row.latents, plant.RATE)] * row.runs
    return Job(
        model=str(folder / "model"),
        hookpoint=f"layers.{shape.layers // 2}",
        width=shape.width,
        tokens=str(folder / "tokens.npy"),
        batch=row.sequences,
        steps=steps,
        warmup=1,
        coders=coders,
        weights=str(folder / "weights.npz"),
        folder=str(folder),
        device=device,
        dtype=dtype,
        skip=SKIP,
        wandb=False,
    )


def main(spec: dict[str, Any]) -> None:
    """Measures the program."""
    folder = Path(spec["folder"])
    job = prepared(Row(**spec["row"]), Shape(**spec["shape"]), folder, spec["device"], spec["steps"] + SKIP)
    command = [spec["python"], Path(__file__).parents[1] / SCRIPTS[spec["contender"]], job.write(folder / "job.json")]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        sys.exit(done.returncode)
    found = json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
    tell(step=found["seconds"] / spec["steps"], allocated=found["peak"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
