"""Which latents two coders have in common, by their weights alone; numpy and scipy, no torch.

Paulo and Belrose, "Sparse Autoencoders Trained on the Same Data Learn Different Features" (arXiv 2501.16615), and the authors' code
(github.com/SrGonao/sae_overlap): one matching of all encoder rows and one of all decoder rows, each one to one and with the largest sum of
cosines (Hungarian algorithm). A latent is in common where both matchings name the same counterpart and both cosines are at least 0.7.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sae_transcoder.coder.stored_coders import WEIGHTS
from sae_transcoder.process.tensor_headers import tensor_headers
from sae_transcoder.run_store.checked_files import damaged

SHARED_COSINE = 0.7
CHUNK = 1024  # rows of a product
FIX = "take the coder from another copy"


@dataclass(frozen=True)
class Rows:
    """The rows of a coder at norm 1, float32: `encoder` [latent, d_in], `decoder` [latent, d_out]. A row of zeros stays one."""

    encoder: np.ndarray
    decoder: np.ndarray


@dataclass(frozen=True)
class Counterparts:
    """For each latent of a coder: its counterpart in the other one by encoder rows and by decoder rows, and the cosine with it, all [latent]."""

    encoder: np.ndarray
    decoder: np.ndarray
    encoder_cosine: np.ndarray
    decoder_cosine: np.ndarray

    @property
    def agree(self) -> np.ndarray:
        """[latent] bool: whether both matchings name the same counterpart."""
        return self.encoder == self.decoder

    @property
    def shared(self) -> np.ndarray:
        """[latent] bool: whether the other coder has the latent too."""
        return self.agree & (np.minimum(self.encoder_cosine, self.decoder_cosine) >= SHARED_COSINE)


def match(one: Rows, other: Rows) -> Counterparts:
    """The counterparts of one coder's latents in another one of as many. Memory: `bytes_needed`."""
    encoder, encoder_cosine = assignment(one.encoder, other.encoder)
    decoder, decoder_cosine = assignment(one.decoder, other.decoder)
    return Counterparts(encoder, decoder, encoder_cosine, decoder_cosine)


def assignment(rows: np.ndarray, other_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The matching of two sets of rows [latent, d] of norm 1 with the largest sum of cosines: the other's row for each, and the cosine, [latent]."""
    from scipy.optimize import linear_sum_assignment  # takes as long to import as the rest of a report

    costs = np.empty((len(rows), len(other_rows)))  # float64, and negative cosines, since scipy would make copies of anything else
    for first in range(0, len(rows), CHUNK):
        np.negative(rows[first : first + CHUNK] @ other_rows.T, out=costs[first : first + CHUNK])
    index, other_index = linear_sum_assignment(costs)
    return other_index, -costs[index, other_index]


def bytes_needed(latents: int) -> int:
    """Memory of one matching: its matrix of costs."""
    return 8 * latents**2


def seconds_needed(latents: int) -> float:
    """About how long `match` takes: from 2,048 to 16,384 latents the times in docs/seeds.md grow by the power of 2.5."""
    return 167.0 * (latents / 16_384) ** 2.5


def read_rows(folder: Path, latents: int, width: int) -> Rows:
    """The rows of a stored coder of that many latents, of activations that wide. Raises DamagedFile."""
    from safetensors import safe_open

    path = folder / WEIGHTS
    try:
        headers = tensor_headers(path)
        if others := [f"{name} is in {kind}" for name, (_, kind) in headers.items() if kind not in ("F16", "F32", "F64")]:
            raise ValueError(f"{', '.join(others)}, not in float32")
        with safe_open(path, framework="numpy") as file:
            encoder, decoder = file.get_tensor("encoder.weight"), file.get_tensor("W_dec")
    except Exception as error:  # safetensors raises many kinds for damaged files
        reason = "it is not there" if isinstance(error, FileNotFoundError) else str(error).splitlines()[0] or type(error).__name__
        raise damaged(path, reason, FIX) from error
    for name, tensor in (("encoder.weight", encoder), ("W_dec", decoder)):
        if tensor.shape != (latents, width):
            raise damaged(path, f"{name} has the shape {list(tensor.shape)}, its evaluation is of {[latents, width]}", FIX)
        if not np.isfinite(tensor).all():
            raise damaged(path, f"{name} holds numbers that are not finite", FIX)
    return Rows(unit_rows(encoder), unit_rows(decoder))


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """The rows [latent, d] in float32 at norm 1; a row of zeros stays one."""
    rows = rows.astype(np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)


def stamp(folder: Path) -> list[int]:
    """The size in bytes and the time of change in ns of a coder's weights. Raises DamagedFile where there are none."""
    path = folder / WEIGHTS
    try:
        found = path.stat()
    except OSError as error:
        raise damaged(path, error.strerror or error, FIX) from error
    return [found.st_size, found.st_mtime_ns]
