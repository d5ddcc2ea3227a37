"""What should OpenMP's threads do while they wait? The demo run alone on the machine, and beside a second one, under each setting.

    python benchmarks/ourselves/busy_machine.py                         about 12 minutes on two CPU cores
    python benchmarks/ourselves/busy_machine.py --samples 200 --repeats 1    whether it works, about two minutes

A thread that waits for the others of its team spins by default: the next piece of work begins sooner, but another process that wants the core
gets it only once the scheduler takes it away. OMP_WAIT_POLICY=passive sends waiting threads to sleep; GOMP_SPINCOUNT is how often GNU's OpenMP,
which torch brings, looks before that. Each figure is the time of training alone (tokens over tokens a second, from status.json), the median
of the repeats; settings take turns. Beside another run the slower of the two counts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
SETTINGS: dict[str, dict[str, str]] = {
    "GOMP_SPINCOUNT=300000": {"GOMP_SPINCOUNT": "300000"},  # libgomp's own, where no policy is set
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=100": {"GOMP_SPINCOUNT": "100"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
}


def start(folder: Path, samples: int, setting: dict[str, str]) -> subprocess.Popen[str]:
    """Starts a demo run that saves to `folder`."""
    environment = {name: value for name, value in os.environ.items() if name not in NAMES} | setting
    command = [sys.executable, "-m", "sae_transcoder.train", "experiment=demo", "hardware=cpu", f"max_samples={samples}"]
    command += [f"save_dir={folder}", "eval_samples=8", "eval_end_to_end=false"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def seconds(count: int, samples: int, setting: dict[str, str]) -> float:
    """How long the slowest of `count` runs at once trains."""
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / str(i) for i in range(count)]
        processes = [start(folder, samples, setting) for folder in folders]
        for process in processes:
            output, _ = process.communicate()
            if process.returncode:
                sys.exit(output[-2000:])
        states = [json.loads(next(folder.glob("*/status.json")).read_text()) for folder in folders]
        return max(state["tokens"] / state["tokens_per_s"] for state in states)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000, help="training samples of a run (1000)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind (3)")
    asked = parser.parse_args()
    for count in (1, 2):
        taken_by: dict[str, list[float]] = {name: [] for name in SETTINGS}
        for _ in range(asked.repeats):
            for name, setting in SETTINGS.items():
                taken_by[name].append(seconds(count, asked.samples, setting))
        for name, taken in taken_by.items():
            print(f"{name}, {count} at once: {statistics.median(taken):.1f} s ({min(taken):.1f} to {max(taken):.1f})", flush=True)


if __name__ == "__main__":
    main()
