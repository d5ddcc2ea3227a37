"""Runs that never ran, with coders of random weights and latents that are made up."""

import argparse
import json
from pathlib import Path

from helpers.made_up_latents import MadeUp, python_text, write_latents
from helpers.random_runs import write_random_run
from sae_transcoder.run_store.latents_pass import FOLDER


def write_run_with_latents(folder: Path, *settings: str, latents: int = 40) -> tuple[Path, MadeUp]:
    """The directory of a run, and what its latents/ holds: the first latents of each coder."""
    run_dir, coders = write_random_run(folder, *settings)
    return run_dir, add_latents(run_dir, list(coders), latents)


def add_latents(run_dir: Path, coders: list[str], latents: int) -> MadeUp:
    """Writes latents/ of a run, and returns what it holds."""
    corpus, vocabulary = python_text([json, argparse])
    made = MadeUp(corpus, vocabulary, latents=latents, coders=coders)
    write_latents(run_dir / FOLDER / "coders", made)
    return made
