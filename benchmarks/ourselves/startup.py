"""How long does it take until something happens? --help, one run composed, a sweep's jobs checked, the report of many runs.

    python benchmarks/ourselves/startup.py                              about 3 minutes on two quiet CPU cores
    python benchmarks/ourselves/startup.py --jobs 20 --repeats 1        whether it works, about half a minute

Each command is a process of its own, the interpreter's start and all imports counted; the median of the repeats. The jobs are checked by
`dry_run=true`: each is composed, its settings, model, data and memory are checked, the packs are planned; nothing is trained. The report's
runs are made up, with 400 lines of metrics each.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import common
from ourselves.report import settings

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from helpers.made_up_runs import name, write_run

TRAIN = [sys.executable, "-c", "from sae_transcoder.train import main; main()"]
REPORT = [sys.executable, "-c", "from sae_transcoder.report import main; main()"]
RATES = "1e-3,3e-3,1e-2,3e-2"


def seconds(command: list[str]) -> float:
    """How long a command takes; ends the program where it fails."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    taken = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command[2:])}:\n{done.stderr[-2000:]}{done.stdout[-2000:]}")
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--jobs", type=int, default=1000, help="jobs that are checked, and runs of the report; a multiple of 4 (1000)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="calls of each command (3)")
    parser.add_argument("--markdown", action="store_true", help="tables for a README")
    asked = parser.parse_args()
    count = asked.jobs // 4 * 4
    with tempfile.TemporaryDirectory() as folder:
        grid = ["experiment=demo", "hardware=cpu", f"save_dir={folder}/none", f"k=range(1,{count // 4 + 1})", f"lr={RATES}"]
        for each in settings(count):
            write_run(Path(folder) / "runs" / name(each), each, lines=400)
        commands = {
            "sae-train --help": [*TRAIN, "--help"],
            "sae-train experiment=demo --cfg job": [*TRAIN, "experiment=demo", "--cfg", "job"],
            f"sae-train -m, {count:,} jobs, dry_run=true": [*TRAIN, "-m", *grid, "dry_run=true"],
            f"sae-report, {count:,} runs": [*REPORT, f"{folder}/runs"],
        }
        seconds([*TRAIN, "experiment=demo", f"save_dir={folder}/none", "dry_run=true"])  # tokenises once
        rows = []
        for label, command in commands.items():
            times = [seconds(command) for _ in range(asked.repeats)]
            rows.append([label, f"{statistics.median(times):.2f} s", ", ".join(f"{t:.2f}" for t in times)])
            common.say(f"{label}: {times[-1]:.2f} s")
    common.show(f"Median of {asked.repeats}", ["command", "time", "all times, s"], rows, markdown=asked.markdown)


if __name__ == "__main__":
    main()
