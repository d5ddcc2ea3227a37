"""Defaults on one's own text: lr=null beside four fixed rates, on documentation that lies on this machine.

    python benchmarks/ourselves/own_text.py [--experiment own_text] [--markdown]          a few minutes on two CPU cores

The text: manuals and packages' documentation in /usr/share and in this environment, in a seeded order, a million and a half characters, as jsonl. The
command is a newcomer's, `sae-train -m model_type=sae model=demo dataset=local_text dataset_name=mine.jsonl text_column=content 'layers=[1],[3]'
k=16,32 expansion_factor=4,8`; --experiment adds a preset. The table: held-out FVU at each rate, at null, and how far null is above the best.
"""

import argparse
import gzip
import json
import random
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import say, show
from sae_transcoder.api import sweep

RATES = ["3e-3", "1e-2", "3e-2", "1e-1"]
PLACES = {Path("/usr/share/doc"): ["*"], Path("/usr/share/man"): ["*"], Path(sysconfig.get_path("purelib")): ["*.md", "*.rst"]}
CHARACTERS = 1_500_000
LONGEST = 20_000  # characters of a document
GRID = ["layers=[1],[3]", "k=16,32", "expansion_factor=4,8"]


def documents() -> Iterator[str]:
    """Texts of the machine's documentation, in a seeded order."""
    files = sorted(path for folder, patterns in PLACES.items() for pattern in patterns for path in folder.rglob(pattern))
    random.Random(0).shuffle(files)
    for path in files:
        try:
            text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
        except (OSError, UnicodeDecodeError):  # a folder, a broken link, an image
            continue
        if len(text) > 300:
            yield text[:LONGEST]


def write_text(path: Path) -> None:
    """Writes the text as jsonl with the column `content`."""
    written = 0
    with path.open("w") as file:
        for text in documents():
            file.write(json.dumps({"content": text}) + "\n")
            written += len(text)
            if written > CHARACTERS:
                break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", help="a preset, own_text")
    parser.add_argument("--rates", nargs="+", default=RATES, help="fixed rates")
    parser.add_argument("--markdown", action="store_true", help="a table for a README")
    asked = parser.parse_args()
    command = ["model_type=sae", "model=demo", "dataset=local_text", "text_column=content", *GRID]
    if asked.experiment:
        command.insert(0, f"experiment={asked.experiment}")
    command.append("eval_end_to_end=false")  # which takes longer than the training, and changes no FVU
    rates = [*asked.rates, "null"]
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "mine.jsonl"
        write_text(text)
        runs = sweep(*command, f"dataset_name={text}", f"lr={','.join(rates)}", f"save_dir={folder}/outputs")
        table = []
        for start in range(0, len(runs), len(rates)):
            own = runs[start : start + len(rates)]
            *fixed, automatic = [run.evaluation.coders[0].metrics["fvu"] for run in own]
            cfg = own[0].config
            row = [
                f"layer {cfg.layers[0]}, k {cfg.k}, x{cfg.expansion_factor}",
                *(f"{fvu:.4f}" for fvu in fixed),
                f"{automatic:.4f}",
            ]
            table.append([*row, f"{100 * (automatic / min(fixed) - 1):+.1f} %"])
            say("  ".join(table[-1]))
    show("held-out FVU by rate", ["", *rates, "above the best"], table, markdown=asked.markdown)


if __name__ == "__main__":
    main()
