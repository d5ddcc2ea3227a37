"""Muon's orthogonalisation in float32 on a CPU."""

import pytest
import torch
from sparsify import muon as sparsify_muon

from helpers.device import DEVICE, ON_GPU
from helpers.tiny_models import tiny_config
from sae_transcoder.coder.muon import CorrectedMuon, newton_schulz
from sae_transcoder.coder.sparsify_parts import Muon
from sae_transcoder.training.coder_trainer import CoderTrainer

SHAPES = [(8, 32), (32, 8), (16, 16)]
pytestmark = pytest.mark.device


def iterated_in_float64(matrix: torch.Tensor, steps: int) -> torch.Tensor:
    """The quintic iteration on the singular values, which it alone changes: f(s) = 3.4445 s - 4.7750 s^3 + 2.0315 s^5."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(steps):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ values.diag() @ right


@pytest.mark.skipif(ON_GPU, reason="on a GPU the iteration is sparsify's")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_iteration_is_in_float32_on_a_cpu_and_sparsifys_still_is_not(shape: tuple[int, int]) -> None:
    """When sparsify's own is as near, the correction may go."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exact = iterated_in_float64(matrix, 5)
    ours, theirs = newton_schulz(matrix, 5), sparsify_muon.quintic_newtonschulz(matrix, 5)
    assert (ours.dtype, theirs.dtype) == (torch.float32, torch.bfloat16)
    assert (ours - exact).norm() / exact.norm() < 1e-5
    assert 1e-3 < (theirs - exact).norm() / exact.norm() < 0.1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("settings", [{}, {"nesterov": False}, {"weight_decay": 0.0}], ids=str)
def test_all_else_of_a_step_is_sparsifys(shape: tuple[int, int], settings: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same iteration both move a matrix bit for bit alike."""
    monkeypatch.setattr(sparsify_muon, "quintic_newtonschulz", newton_schulz)
    first = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    moved = []
    for kind in (Muon, CorrectedMuon):
        weight = first.clone().requires_grad_()
        optimizer = kind([weight], lr=0.1, ddp=False, **settings)
        for _ in range(3):
            (weight**3).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        moved.append(weight.detach())
    assert torch.equal(*moved)
    assert not torch.equal(moved[0], first)


def test_other_trainers_keep_sparsifys_iteration_and_so_does_a_run_without_corrections() -> None:
    assert sparsify_muon.quintic_newtonschulz.__module__ == "sparsify.muon"
    for corrections, kind in ((True, CorrectedMuon), (False, Muon)):
        run = CoderTrainer(tiny_config("sae", optimizer="muon", corrections=corrections), {"layers.1": 32}, 64, DEVICE)
        assert type(run.optimizers[0]) is kind
