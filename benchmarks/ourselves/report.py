"""How long does sae-report take? Writes runs' folders as sae-train does, then prints the time of the table and of all files.

python benchmarks/ourselves/report.py [runs]          1,000 by default; each command is a process of its own, its start counted
"""

import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from helpers.made_up_runs import config, name, write_run

REPORT = [sys.executable, "-c", "from sae_transcoder.report import main; main()"]


def settings(runs: int) -> list[dict]:
    """So many different ones: types, widths, k, learning rates, as many seeds as it takes."""
    kinds = itertools.product(range(runs), ["sae", "transcoder"], [8, 32], [8, 16, 32, 64, 128], [1e-3, 3e-3])
    return [
        config(model_type=kind, expansion_factor=expansion, k=k, lr=lr, init_seeds=[seed])
        for seed, kind, expansion, k, lr in itertools.islice(kinds, runs)
    ]


def seconds(*arguments: str) -> float:
    """How long a command took."""
    start = time.monotonic()
    subprocess.run([*REPORT, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as place:
        folder, out = str(Path(place) / "runs"), Path(place) / "out"
        for each in settings(runs):
            write_run(Path(folder) / name(each), each, lines=400)
        print(f"{runs} runs of 400 lines of metrics, 512 or 2,048 latents")
        print(f"table             {seconds(folder):.1f} s")
        print(f"sorted, filtered  {seconds(folder, '--sort', '-fvu', '--where', 'k<=32'):.1f} s")
        files = [f"--{kind}={out / 'all'}.{kind}" for kind in ("csv", "json", "parquet")]
        print(f"csv, json, parquet {seconds(folder, *files):.1f} s")
        print(f"pictures, page    {seconds(folder, '--out', str(out)):.1f} s")
        for path in sorted(out.iterdir()):
            print(f"  {path.name:14} {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
