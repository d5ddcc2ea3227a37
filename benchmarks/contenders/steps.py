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


@dataclass
class Steps:
    """A coder and how it is trained: Adam at a constant rate, no gradient clipped, no AuxK.

    The loss is the fraction of variance unexplained of a batch, with `widths` the mean of those of the nested dictionaries, and for jumprelu the sparsity loss
    besides. Peers take the mean over tokens of squared errors; what they compute is multiplied to become this, batch by batch.
    """

    folder: str  # of given.npz and of what each program yields
    activation: str  # batchtopk or jumprelu
    k: int
    lr: float
    dtype: str  # float32 or float64
    unit_decoder: bool  # rows of the decoder are kept at norm 1, gradients along them removed
    widths: list[int] | None = None
    sparsity_loss: str = "quadratic"
    coefficient: float = 0.0  # of the sparsity loss, beside the FVU
    bandwidth: float = 0.05
    threshold_beta: float = 0.99  # share of the running threshold that stays at each batch

    def write(self) -> Path:
        """Keeps it for another program."""
        path = Path(self.folder) / "steps.json"
        path.write_text(json.dumps(asdict(self)))
        return path

    def given(self) -> dict[str, Tensor]:
        """encoder [latent, d], encoder_bias [latent], decoder [latent, d], bias [d], with jumprelu threshold [latent]; batches [step, token, d]."""
        with np.load(Path(self.folder) / "given.npz") as kept:
            return {name: torch.from_numpy(kept[name]).to(getattr(torch, self.dtype)) for name in kept}

    def scale(self, x: Tensor) -> float:
        """1 over the variance of a token of the batch x [token, d]."""
        return 1 / (x - x.mean(0)).pow(2).sum(1).mean().item()


def asked() -> Iterator[Steps]:
    """What the files that the command line names ask for."""
    for path in sys.argv[1:]:
        yield Steps(**json.loads(Path(path).read_text()))


def make_steps(
    steps: Steps,
    parameters: Mapping[str, Tensor],
    loss: Callable[[Tensor, int], Tensor],
    before: Callable[[], None] = lambda: None,
    after: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """Makes the steps of a peer: {losses [step], "gradient NAME" of the first step, "weight NAME" after the last}.

    parameters: by the names of `given`, the matrices as the peer holds them; loss: of a batch [token, d] and its number; before and after: an optimizer step.
    """
    adam = torch.optim.Adam(parameters.values(), lr=steps.lr)
    found: dict[str, Tensor] = {}
    losses = []
    for i, x in enumerate(steps.given()["batches"]):
        adam.zero_grad()
        value = loss(x, i)
        value.backward()
        if i == 0:
            found |= {f"gradient {name}": p.grad.clone() for name, p in parameters.items()}
        before()
        adam.step()
        after()
        losses.append(value.detach().double())
    return found | {f"weight {name}": p.detach() for name, p in parameters.items()} | {"losses": torch.stack(losses)}


def deliver(steps: Steps, found: Mapping[str, Tensor], transposed: tuple[str, ...] = ()) -> None:
    """Writes what was found, float64; `transposed`: names of the matrices that the program holds as [d, latent]."""
    arrays = {name: (v.T if name.partition(" ")[2] in transposed else v).double().contiguous().numpy() for name, v in found.items()}
    np.savez(Path(steps.folder) / "found.npz", **arrays)
