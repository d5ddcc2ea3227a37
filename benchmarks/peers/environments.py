"""Makes the environments of other programs: SAELens and dictionary_learning, which the benchmarks compare with, and circuit-tracer and SAEBench,
which read what is trained here; a few minutes, once, about 4 GB.

    python benchmarks/peers/environments.py [NAME ...] [--folder FOLDER]

Plain sparsify needs none: it runs in this project's environment. An environment counts as made once its peer can be imported; one that
was not finished is made anew.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

DEFAULT = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sae_transcoder_benchmarks"
# torch comes first and pinned: otherwise pip takes the newest build, with several GB of CUDA packages on machines without a GPU.
FIRST = ["torch==2.13.0"]
WHOLE = "made_by_peers_py"  # a file that says what was installed, once all was
SAME = ["transformers==5.23.0", *FIRST]  # the language model of every contender


@dataclass(frozen=True)
class Peer:
    """What is installed, with dependencies and then without them, and what must then be importable."""

    packages: list[str]
    alone: list[str]
    imports: str


PEERS = {
    "saelens": Peer([*SAME, "sae-lens==6.54.12"], [], "sae_lens.multi_sae_training_runner"),
    # Its own requirements name torchvision (through nnsight), umap and more that its trainers never use: these are what they import.
    "dictionary_learning": Peer(
        [*SAME, "numpy", "tqdm", "einops", "wandb", "datasets", "accelerate", "python-socketio[client]", "pillow"],
        ["dictionary-learning==0.1.0", "nnsight>=0.3,<0.4"],
        "dictionary_learning.training",
    ),
    # It takes nnsight 0.8, whose modules it cannot import, and transformers before 5; matplotlib is for examples/.
    "circuit_tracer": Peer([*FIRST, "circuit-tracer==0.5.0", "nnsight>=0.6,<0.7", "matplotlib"], [], "circuit_tracer"),
    # Its own requirements name what its other evaluations need (torchvision, sae-probes, openai); these are what the core evaluation imports.
    "sae_bench": Peer(
        [*SAME, "sae-lens==6.54.12", "datasets<4", "numpy<2", "pyarrow<22", "beartype", "collectibles", "pydantic", "tabulate"],
        ["sae-bench==0.6.0"],
        "sae_bench.evals.core.main",
    ),
}


def found(name: str, folder: Path = DEFAULT) -> Path | None:
    """The interpreter of a peer's environment, where it is whole."""
    whole = folder / name / WHOLE
    return folder / name / "bin" / "python" if whole.exists() and whole.read_text() == repr(PEERS[name]) else None


def interpreter(name: str, folder: Path = DEFAULT) -> Path | None:
    """The Python that can import a contender: its environment's, or this one; None where neither can."""
    here = Path(sys.executable)
    if name not in PEERS:
        return here
    return found(name, folder) or (here if importlib.util.find_spec(PEERS[name].imports.partition(".")[0]) else None)


def python(name: str, folder: Path = DEFAULT) -> Path:
    """The interpreter of a peer's environment. Ends the program where there is none."""
    if path := found(name, folder):
        return path
    sys.exit(
        f"{name}: no environment in {folder}; make it with python benchmarks/peers/environments.py {name} (a benchmark goes without it by --without)"
    )


def call(*command: str | Path) -> None:
    """Runs a command; ends the program with its output where it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def make(name: str, peer: Peer, folder: Path) -> None:
    """Makes one environment; a file in it says that it is whole."""
    place = folder / name
    if found(name, folder):
        print(f"{name}: is in {place}")
        return
    print(f"{name}: installing into {place}", flush=True)
    shutil.rmtree(place, ignore_errors=True)
    call(sys.executable, "-m", "venv", place)
    own = place / "bin" / "python"
    pip = [own, "-m", "pip", "install", "-q", "--no-compile"]
    call(*pip, *FIRST)
    call(*pip, *peer.packages)
    if peer.alone:
        call(*pip, "--no-deps", *peer.alone)
    call(own, "-c", f"import {peer.imports}")
    (place / WHOLE).write_text(repr(peer))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PEERS)}; none: all")
    parser.add_argument("--folder", type=Path, default=DEFAULT, help=f"where the environments are kept ({DEFAULT})")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(PEERS):
        parser.error(f"{', '.join(sorted(unknown))}: no peer; choose of {', '.join(PEERS)}")
    for name in arguments.names or PEERS:
        make(name, PEERS[name], arguments.folder)


if __name__ == "__main__":
    main()
