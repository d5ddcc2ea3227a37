"""Files that grow as text is read: the activations around places, and the latents that fire on some tokens. Memory stays as it is."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sae_transcoder.latents.batch import Batch, Firings

BEFORE, AFTER = 32, 16  # positions of a context before and after its place
FIRING = np.dtype([("offset", "<i2"), ("activation", "<f4")])  # a position where the latent fires, counted from the context's place


class Log:
    """A file of numbers that is only appended to. `size`: how many there are."""

    def __init__(self, path: Path, dtype: np.dtype | type, size: int):
        """Opens the file, and drops what was written after the first `size` numbers. Raises OSError where it holds fewer."""
        self.path, self.dtype, self.size = path, np.dtype(dtype), size
        path.touch()
        if path.stat().st_size < size * self.dtype.itemsize:
            raise OSError(f"{path} is cut off")
        self.file = path.open("r+b")
        self.file.truncate(size * self.dtype.itemsize)
        self.file.seek(0, 2)

    def append(self, values: np.ndarray) -> None:
        """Appends the numbers."""
        self.file.write(np.ascontiguousarray(values, self.dtype).tobytes())
        self.size += len(values)

    def flush(self) -> None:
        """Hands to the system what was appended."""
        self.file.flush()

    def read(self) -> np.ndarray:
        """All numbers, read from the disk as they are asked for."""
        self.flush()
        return np.memmap(self.path, self.dtype, "r", shape=(self.size,)) if self.size else np.zeros(0, self.dtype)


class Windows:
    """The activations of latents around places; the windows are numbered from 0."""

    def __init__(self, folder: Path, sizes: dict[str, int]):
        self.ends = Log(folder / "window_ends.bin", np.int64, sizes.get("window_ends", 0))
        self.firings = Log(folder / "window_firings.bin", FIRING, sizes.get("window_firings", 0))

    def sizes(self) -> dict[str, int]:
        """How much of the files is written."""
        self.ends.flush()
        self.firings.flush()
        return {"window_ends": self.ends.size, "window_firings": self.firings.size}

    def append(self, batch: Batch, firings: Firings, chosen: Firings) -> Tensor:
        """Keeps the window of each of the `chosen` [entry] among a batch's firings. Returns their numbers [entry]."""
        device = chosen.rows.device
        numbers = torch.arange(self.ends.size, self.ends.size + len(chosen.rows), device=device)
        if not len(chosen.rows):
            return numbers
        positions = batch.tokens.numel()
        is_chosen = torch.zeros(int(firings.rows.max()) + 1, dtype=torch.bool, device=device)
        is_chosen[chosen.rows] = True
        relevant = firings.where(is_chosen[firings.rows])
        keys, order = (relevant.rows * positions + relevant.positions).sort()
        start = chosen.positions - chosen.positions % batch.length
        first = torch.maximum(chosen.positions - BEFORE, start)
        last = torch.minimum(chosen.positions + AFTER, start + batch.length - 1)
        lowest = torch.searchsorted(keys, chosen.rows * positions + first)
        counts = torch.searchsorted(keys, chosen.rows * positions + last, right=True) - lowest
        of_entry = torch.arange(len(counts), device=device).repeat_interleave(counts)
        ends = counts.cumsum(0)
        found = order[torch.arange(len(of_entry), device=device) + (lowest - ends + counts)[of_entry]]
        written = np.empty(len(found), FIRING)
        written["offset"] = (relevant.positions[found] - chosen.positions[of_entry]).cpu().numpy()
        written["activation"] = relevant.activations[found].cpu().numpy()
        self.ends.append(ends.cpu().numpy() + self.firings.size)
        self.firings.append(written)
        return numbers

    def dense(self, numbers: np.ndarray) -> np.ndarray:
        """The activations around the places of these windows [window, BEFORE + 1 + AFTER], 0 where the latent does not fire."""
        ends, firings = self.ends.read(), self.firings.read()
        stops = ends[numbers]
        starts = np.where(numbers > 0, ends[np.maximum(numbers - 1, 0)], 0)
        counts = stops - starts
        of_window = np.repeat(np.arange(len(numbers)), counts)
        found = firings[np.arange(len(of_window)) + np.repeat(starts - np.cumsum(counts) + counts, counts)]
        activations = np.zeros((len(numbers), BEFORE + 1 + AFTER), np.float32)
        activations[of_window, BEFORE + found["offset"].astype(np.int64)] = found["activation"]
        return activations


class Together:
    """All latents that fire on a sample of tokens, from which it is counted which fire together.

    share: of the tokens that are in the sample, those of the lowest priorities.
    """

    def __init__(self, folder: Path, sizes: dict[str, int], share: float):
        self.counts = Log(folder / "together_counts.bin", np.int32, sizes.get("together_counts", 0))
        self.latents = Log(folder / "together_latents.bin", np.int32, sizes.get("together_latents", 0))
        self.bound = min(int(share * 2**64) - 2**63, 2**63 - 1)

    def sizes(self) -> dict[str, int]:
        """How much of the files is written."""
        self.counts.flush()
        self.latents.flush()
        return {"together_counts": self.counts.size, "together_latents": self.latents.size}

    def add(self, batch: Batch, latents: Tensor, positions: Tensor, kept: Tensor | None) -> None:
        """Adds a batch: the latents that fire and their positions [entry], of the positions `kept` that count, None for all."""
        sampled = batch.priorities <= self.bound
        counted = sampled if kept is None else torch.zeros_like(sampled).index_fill_(0, kept, True) & sampled
        mask = counted[positions]
        per_position = torch.bincount(positions[mask], minlength=len(counted))[counted]
        self.counts.append(per_position.cpu().numpy())
        self.latents.append(latents[mask].cpu().numpy())
