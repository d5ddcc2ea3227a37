"""Are a step's loss and gradients, and the weights after 20, those of SAELens and dictionary_learning? From the same weights, on the same batches.

    python benchmarks/peers/environments.py && python benchmarks/peers/same_steps.py             a minute

SAEs of 256 latents and width 48, k = 16, batches of 256 made-up tokens, Adam at a constant rate, no gradient clipped. BatchTopK and Matryoshka
of four nested dictionaries are held against both programs, JumpReLU with each sparsity loss against SAELens. This project computes in float32 as
always, the peers in float64. Each peer passes over batches in which a pre-activation lies within 2e-6 of where it begins to count, so that
rounding decides nothing. The table has the largest difference relative to the largest value: of the losses of all steps, the gradients of the
first, the running threshold and the weights after the last; and the weights' by their norm, since Adam divides by gradients, some of which
cancel. Ends with an error where losses, gradients, the threshold or the weights by norm differ by more than 1e-5. README.md here says where the
programs differ by definition.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

import common
from common import DICTIONARY_LEARNING, SAELENS
from contenders.steps import Steps
from peers import environments
from sae_transcoder.config.composer import composed
from sae_transcoder.language_model.forward import Activations
from sae_transcoder.training.batched_training import train_on_batch
from sae_transcoder.training.coder_copies import copy_coders
from sae_transcoder.training.coder_trainer import CoderTrainer
from sae_transcoder.training.read_ahead import read_ahead

POINT, WIDTH, LATENTS, K, SEQUENCES, LENGTH = "layers.0", 48, 256, 16, 4, 64
BATCHES, LIMIT = 120, 1e-5
LEVELS = [32, 64, 128, LATENTS]
SCRIPTS = {name: f"contenders/steps_{name}.py" for name in (SAELENS, DICTIONARY_LEARNING)}
NAMES = {"encoder": "encoder.weight", "encoder_bias": "encoder.bias", "decoder": "W_dec", "bias": "b_dec", "threshold": "threshold"}


@dataclass(frozen=True)
class Case:
    """A coder, and the program that it is held against."""

    peer: str
    activation: str
    widths: tuple[int, ...] | None = None
    sparsity_loss: str = "quadratic"
    coefficient: float = 0.0

    def __str__(self) -> str:
        kind = (
            f"jumprelu, {self.sparsity_loss}" if self.activation == "jumprelu" else "matryoshka" if self.widths else self.activation
        )
        return f"{kind}; {self.peer}"

    def steps(self, folder: Path, count: int) -> Steps:
        """The steps that both programs make, in a folder with what they are given."""
        return Steps(
            folder=str(folder),
            activation=self.activation,
            k=K,
            lr=1e-3,
            count=count,
            widths=list(self.widths) if self.widths else None,
            sparsity_loss=self.sparsity_loss,
            coefficient=self.coefficient,
        )


CASES = [
    *(Case(peer, "batchtopk", widths) for peer in (SAELENS, DICTIONARY_LEARNING) for widths in (None, tuple(LEVELS))),
    *(Case(SAELENS, "jumprelu", None, loss, weight) for loss, weight in (("quadratic", 0.02), ("step", 0.01), ("tanh", 0.01))),
]


def write_given(path: Path) -> None:
    """Weights of a coder, and batches whose tokens are sums of some of 128 directions, not centred."""
    generator = torch.Generator().manual_seed(0)
    directions, mean = torch.randn(128, WIDTH, generator=generator), torch.randn(WIDTH, generator=generator)
    active = torch.rand(BATCHES, SEQUENCES * LENGTH, 128, generator=generator)
    batches = (active * (active > 0.9)) @ directions / 3 + mean
    encoder = (2 * torch.rand(LATENTS, WIDTH, generator=generator) - 1) / WIDTH**0.5
    arrays = {
        "encoder": encoder,
        "encoder_bias": 0.05 * torch.randn(LATENTS, generator=generator),
        "decoder": encoder / encoder.norm(dim=1, keepdim=True),
        "bias": batches.mean((0, 1)),
        "threshold": torch.full((LATENTS,), 0.05),
        "batches": batches,
    }
    np.savez(path, **{name: values.numpy() for name, values in arrays.items()})


def ours(case: Case, steps: Steps, used: Sequence[int]) -> dict[str, Tensor]:
    """What this project finds on the batches that the peer has used, under the peer's names."""
    given = steps.given()
    settings = ["model_type=sae", "model_name=none", "dataset_kind=memmap", "dataset_name=none", f"batch_size={SEQUENCES}"]
    settings += [
        f"max_seq_length={LENGTH}",
        "grad_acc_steps=1",
        f"num_latents={LATENTS}",
        f"k={K}",
        f"lr={steps.lr}",
        "auxk_alpha=0",
    ]
    settings += ["lr_schedule=constant", "lr_warmup_steps=0", f"activation={steps.activation}"]
    settings += ["exclude_first_tokens=0", f"normalize_decoder={'null' if case.peer == DICTIONARY_LEARNING else 'false'}"]
    if steps.activation == "jumprelu":
        settings += [
            f"jumprelu_loss={steps.sparsity_loss}",
            f"jumprelu_bandwidth={steps.bandwidth}",
            f"l0_coefficient={steps.coefficient}",
        ]
    else:
        settings += [f"threshold_beta={steps.threshold_beta}"]
    settings += [f"matryoshka_widths={steps.widths}"] if steps.widths else []
    run = CoderTrainer(composed(settings), {POINT: WIDTH}, len(used) * SEQUENCES, torch.device("cpu"))
    parameters = dict(run.coders[POINT].named_parameters())
    run.biases_set.add(POINT)  # the given ones stay
    found: dict[str, Tensor] = {}
    for name, own in NAMES.items():
        if own in parameters:
            parameters[own].data.copy_(given[name])

            def keep(p: Tensor, key: str = f"gradient {name}") -> None:
                found.setdefault(key, p.grad.clone())

            parameters[own].register_post_accumulate_grad_hook(keep)
    losses = []
    tokens = torch.zeros(SEQUENCES, LENGTH, dtype=torch.long)
    for number in used:
        x = given["batches"][number].view(SEQUENCES, LENGTH, WIDTH)
        activations = {POINT: Activations(x, x)}
        read_ahead([run], tokens, activations)
        train_on_batch([run], tokens, activations)
        logged = run.metrics()
        fvus = [value for name, value in logged.items() if name.startswith("fvu")]
        losses.append(sum(fvus) / len(fvus) + steps.coefficient * logged.get(f"sparsity/{POINT}", 0.0))
    trained = copy_coders(run)[POINT]
    weights = dict(trained.named_parameters())
    found |= {f"weight {name}": weights[own].data for name, own in NAMES.items() if own in weights}
    if steps.activation == "jumprelu":
        found["weight threshold"] = trained.threshold
    else:
        found["weight running threshold"] = trained.threshold
    return found | {"losses": torch.tensor(losses)}


@dataclass
class Differences:
    """Of one case: the largest, relative to the largest value of the tensor; and the weights' by their norm."""

    loss: float
    gradients: float
    weights: float
    by_norm: float
    threshold: float | None  # the running one, where both programs define it alike


def differences(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> Differences:
    """Of what was found; both have the same tensors, but that one of them may lack the running threshold."""

    def largest(name: str) -> float:
        return ((mine[name].double() - theirs[name]).abs().max() / theirs[name].abs().max()).item()

    def by_norm(name: str) -> float:
        return ((mine[name].double() - theirs[name]).norm() / theirs[name].norm()).item()

    running = "weight running threshold"
    weights = [name for name in mine if name.startswith("weight") and name != running]
    gradients = [name for name in mine if name.startswith("gradient")]
    assert set(weights + gradients) == {name for name in theirs if " " in name} - {running}
    return Differences(
        loss=largest("losses"),
        gradients=max(map(largest, gradients)),
        weights=max(map(largest, weights)),
        by_norm=max(map(by_norm, weights)),
        threshold=largest(running) if running in theirs else None,
    )


def compared(cases: Sequence[Case], count: int, peers_folder: Path = environments.DEFAULT) -> dict[Case, Differences]:
    """The differences after so many steps; a peer's cases run in one process."""
    found = {}
    with tempfile.TemporaryDirectory() as place:
        steps = {}
        for i, case in enumerate(cases):
            folder = Path(place) / str(i)
            folder.mkdir()
            write_given(folder / "given.npz")
            steps[case] = case.steps(folder, count)
        for peer in dict.fromkeys(case.peer for case in cases):
            own = [case for case in cases if case.peer == peer]
            command = [str(environments.python(peer, peers_folder)), str(common.HERE / SCRIPTS[peer])]
            done = subprocess.run([*command, *(steps[case].write() for case in own)], capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{SCRIPTS[peer]} failed:\n{done.stderr[-4000:]}")
            for case in own:
                with np.load(Path(steps[case].folder) / "found.npz") as kept:
                    theirs = {name: torch.from_numpy(kept[name]) for name in kept}
                found[case] = differences(ours(case, steps[case], theirs.pop("batches").tolist()), theirs)
    return found


def too_large(own: Differences) -> bool:
    """Whether the programs differ."""
    return max(own.loss, own.gradients, own.by_norm, own.threshold or 0.0) > LIMIT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps (20)")
    parser.add_argument("--peers", type=Path, default=environments.DEFAULT, help="folder of the peers' environments")
    parser.add_argument("--markdown", action="store_true", help="a table for a README")
    asked = parser.parse_args()
    found = compared(CASES, asked.steps, asked.peers)
    rows = []
    for case, own in found.items():
        values = [own.loss, own.gradients, own.threshold, own.weights, own.by_norm]
        rows.append([str(case), *("" if value is None else f"{value:.1e}" for value in values)])
    headings = ["", "loss of every step", "gradients of the first", "running threshold", f"weights after {asked.steps}", "by norm"]
    common.show("Largest difference, relative to the largest value", headings, rows, markdown=asked.markdown)
    if wrong := [str(case) for case, own in found.items() if too_large(own)]:
        raise SystemExit(f"more than {LIMIT:g}: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
