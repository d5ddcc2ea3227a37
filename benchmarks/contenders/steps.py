"""What the programs of same_steps.py share: a few optimizer steps of one coder on given batches from given weights, and what they yield.

Imports nothing but numpy and torch, so that it runs in the peers' environments.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MARGIN = 2e-6  # in pre-activations, more than float32 makes of their differences in 20 steps


@dataclass
class Steps:
    """A coder and how it is trained: Adam at a constant rate, no gradient clipped, no AuxK.

    The loss is the fraction of variance unexplained of a batch, with `widths` the mean of those of the nested dictionaries, and for jumprelu
    the sparsity loss besides. Peers take the mean over tokens of squared errors; what they compute is multiplied to become this, batch by batch.
    """

    folder: str  # of given.npz and of what the peer yields
    activation: str  # batchtopk or jumprelu
    k: int
    lr: float
    count: int  # of optimizer steps
    widths: list[int] | None = None
    sparsity_loss: str = "quadratic"
    coefficient: float = 0.0  # of the sparsity loss, beside the FVU
    bandwidth: float = 0.1
    threshold_beta: float = 0.95  # share of the running threshold that stays at each batch

    def write(self) -> str:
        """Keeps it for another program; returns the file's path."""
        path = Path(self.folder) / "steps.json"
        path.write_text(json.dumps(asdict(self)))
        return str(path)

    def given(self) -> dict[str, Tensor]:
        """encoder [latent, d], encoder_bias [latent], decoder [latent, d], bias [d], threshold [latent]; batches [batch, token, d]; float32."""
        with np.load(Path(self.folder) / "given.npz") as kept:
            return {name: torch.from_numpy(kept[name]) for name in kept}

    def is_decided(self, preacts: Tensor, threshold: Tensor | None) -> bool:
        """Whether none of the pre-activations [token, latent] of a batch lies so near to where it begins to count that rounding would decide."""
        if threshold is not None:
            distances = preacts - threshold
            return bool(torch.minimum(distances.abs(), (distances.abs() - self.bandwidth / 2).abs()).min() > MARGIN)
        last = preacts.flatten().topk(self.k * len(preacts) + 1).values[-2:]
        return bool(last[0] - last[1] > MARGIN)


def asked() -> Iterator[Steps]:
    """What the files that the command line names ask for."""
    for path in sys.argv[1:]:
        yield Steps(**json.loads(Path(path).read_text()))


def make_steps(
    steps: Steps,
    batches: Tensor,
    parameters: Mapping[str, Tensor],
    preacts: Callable[[Tensor], Tensor],
    loss: Callable[[Tensor, int], Tensor],
    before: Callable[[], None] = lambda: None,
    after: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """Makes the steps of a peer on the first batches that are decided, of batches [batch, token, d]: {batches [step]: their numbers,
    losses [step], "gradient NAME" of the first step, "weight NAME" after the last}.

    parameters: by the names of `given`, the matrices as the peer holds them; preacts: [token, latent] of a batch; loss: of a batch and its
    number, as the peer computes it, per token, which is then divided by a token's variance; before and after: an optimizer step.
    """
    adam = torch.optim.Adam(parameters.values(), lr=steps.lr)
    found: dict[str, Tensor] = {}
    used, losses = [], []
    for number, x in enumerate(batches):
        with torch.no_grad():
            decided = steps.is_decided(preacts(x), parameters.get("threshold"))
        if len(used) == steps.count or not decided:
            continue
        adam.zero_grad()
        value = loss(x, number)
        value.backward()
        if not used:
            found |= {f"gradient {name}": p.grad.clone() for name, p in parameters.items()}
        before()
        adam.step()
        after()
        used.append(number)
        losses.append(value.detach())
    if len(used) < steps.count:
        sys.exit(f"of {len(batches)} batches {len(used)} are decided; {steps.count} are needed")
    weights = {f"weight {name}": p.detach() for name, p in parameters.items()}
    return found | weights | {"batches": torch.tensor(used), "losses": torch.stack(losses)}


def token_variance(x: Tensor) -> Tensor:
    """The variance of a token of the batch x [token, d]."""
    return (x - x.mean(0)).pow(2).sum(1).mean()


def deliver(steps: Steps, found: Mapping[str, Tensor], transposed: tuple[str, ...] = ()) -> None:
    """Writes what was found; `transposed`: names of the matrices that the program holds as [d, latent]."""
    arrays = {name: (v.T if name.partition(" ")[2] in transposed else v).contiguous().numpy() for name, v in found.items()}
    np.savez(Path(steps.folder) / "found.npz", **arrays)
