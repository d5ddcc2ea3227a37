"""sparsify's Muon, corrected: on a CPU its Newton-Schulz iteration is in float32."""

import inspect
from types import FunctionType

import torch
from torch import Tensor

from sae_transcoder.coder.sparsify_parts import Muon, sparsify_muon

IN_BFLOAT16 = sparsify_muon.quintic_newtonschulz
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # sparsify's (muon.py:27)


def newton_schulz(matrix: Tensor, steps: int) -> Tensor:
    """The nearest matrix with orthonormal rows or columns, about, as sparsify's `quintic_newtonschulz`; matrix: [row, column].

    sparsify's iterates in bfloat16. Most CPUs multiply such matrices without instructions for it, about twelve times slower than in float32
    (benchmarks/ourselves/tried.py).
    """
    if matrix.device.type != "cpu":
        return IN_BFLOAT16(matrix, steps)
    a, b, c = COEFFICIENTS
    wide = matrix.mT if matrix.size(-2) > matrix.size(-1) else matrix
    wide = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide.mT if matrix.size(-2) > matrix.size(-1) else wide


class CorrectedMuon(Muon):
    """Muon that orthogonalises by `newton_schulz`; all else of a step is sparsify's."""

    # sparsify's function, to which `quintic_newtonschulz` is another one; replaced in its module, other trainers would have that too.
    step = torch.no_grad()(
        FunctionType(inspect.unwrap(Muon.step).__code__, {**vars(sparsify_muon), "quintic_newtonschulz": newton_schulz})
    )
