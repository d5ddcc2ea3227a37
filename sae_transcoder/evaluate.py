"""How well coders do on tokens that were held out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sae_transcoder.data import Sequences
from sae_transcoder.language_model import Activations, Replace, capture, end_to_end_loss, spliced_output
from sae_transcoder.run import Run
from sae_transcoder.upstream import SparseCoder


@dataclass(frozen=True)
class Subject:
    """Coders of a run {name: coder}, as they would be published; the run says where they belong and which tokens count."""

    run: Run
    coders: Mapping[str, SparseCoder]

    def pair(self, seen: Activations, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """A coder's input and target at a hookpoint, each [token, d], the tokens that do not count left out."""
        return self.run.pair(seen, self.run.kept(seen, self.run.counted(tokens)))


@torch.no_grad()
def heldout_fvu(model: PreTrainedModel, subjects: Sequence[Subject], heldout: Sequences, batch_size: int) -> list[dict[str, float]]:
    """Each coder's fraction of variance unexplained over all of `heldout`: the squared error summed over tokens and dimensions,
    over that of the mean token of the whole set, in float64; NaN where every token is left out. One forward serves all subjects."""
    points = list(dict.fromkeys(point for s in subjects for point in s.run.hookpoint.values()))
    tallies = [{name: _Tally() for name in s.coders} for s in subjects]
    for start in range(0, len(heldout), batch_size):
        tokens = torch.from_numpy(heldout[start : start + batch_size]).to(model.device)
        seen = capture(model, points, tokens)
        for subject, tally in zip(subjects, tallies, strict=True):
            for name, coder in subject.coders.items():
                x, y = subject.pair(seen[subject.run.hookpoint[name]], tokens)
                tally[name].add(y, reconstruct(coder, x))
    return [{name: one.fvu() for name, one in tally.items()} for tally in tallies]


class _Tally:
    """Sums over tokens, in float64, from which a coder's FVU follows."""

    def __init__(self) -> None:
        self.count = 0
        self.error = self.square = 0.0
        self.total: Tensor | float = 0.0

    def add(self, y: Tensor, output: Tensor) -> None:
        """Adds targets y and a coder's outputs, each [token, d]."""
        self.count += len(y)
        self.error += (y - output).double().pow(2).sum().item()
        self.square += y.double().pow(2).sum().item()
        self.total = self.total + y.double().sum(0)

    def fvu(self) -> float:
        """The squared error over that of the mean target."""
        if not self.count:
            return math.nan
        variance = self.square - float(torch.as_tensor(self.total).pow(2).sum()) / self.count
        return self.error / variance if variance > 0 else math.nan


@torch.no_grad()
def heldout_loss(model: PreTrainedModel, subject: Subject, heldout: Sequences, batch_size: int) -> dict[str, float]:
    """Each coder's end-to-end loss over all of `heldout`, in nats: that of all coders of its seed in place at once."""
    losses: dict[str, float] = {}
    for names in subject.run.by_seed():
        total = 0.0
        for start in range(0, len(heldout), batch_size):
            tokens = torch.from_numpy(heldout[start : start + batch_size]).to(model.device)
            replace = in_place(subject, names, tokens)
            total += end_to_end_loss(model, tokens, list(names), replace, subject.run.cfg.loss_fn).item() * len(tokens)
        losses |= dict.fromkeys(names.values(), total / len(heldout))
    return losses


def in_place(subject: Subject, names: Mapping[str, str], tokens: Tensor) -> Replace:
    """What takes the modules' place for `tokens`: the outputs of the coders `names` {hookpoint: coder}, where tokens count."""
    run, mask = subject.run, subject.run.counted(tokens)

    def replace(point: str, seen: Activations) -> Tensor:
        kept = run.kept(seen, mask)
        x, _ = run.pair(seen, kept)
        return spliced_output(seen.output, kept, reconstruct(subject.coders[names[point]], x))

    return replace


def reconstruct(coder: SparseCoder, x: Tensor) -> Tensor:
    """The coder's output for inputs x [token, d]: [token, d]."""
    encoded = coder.encode(x)
    out = coder.decode(encoded.top_acts, encoded.top_indices)
    return out if coder.W_skip is None else out + x.to(out.dtype) @ coder.W_skip.mT
