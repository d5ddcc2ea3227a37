"""Coders' files for runs that never ran: weights of which is known what they have in common."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from sae_transcoder.coder.names import coder_dir
from sae_transcoder.coder.stored_coders import WEIGHTS


def directions(latents: int, d: int, seed: int) -> np.ndarray:
    """Random rows [latent, d], no two alike."""
    return np.random.default_rng(seed).standard_normal((latents, d)).astype(np.float32)


def write_coder(run: Path, name: str, encoder: np.ndarray, decoder: np.ndarray) -> Path:
    """The weights of a run's coder; returns their file."""
    folder = run / "coders" / coder_dir(name)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"encoder.weight": encoder, "W_dec": decoder}, folder / WEIGHTS)
    return folder / WEIGHTS


def write_coders(run: Path, shares: dict[str, float], latents: int = 512, d: int = 64) -> None:
    """A coder of each name that has this share of its latents in common with every other one of a larger share, in another order."""
    for i, (name, share) in enumerate(shares.items()):
        encoder, decoder = directions(latents, d, seed=0), directions(latents, d, seed=1)
        own = round(share * latents)
        encoder[own:], decoder[own:] = directions(latents - own, d, seed=10 + i), directions(latents - own, d, seed=20 + i)
        order = np.random.default_rng(i).permutation(latents)
        write_coder(run, name, 2 * encoder[order], decoder[order])
