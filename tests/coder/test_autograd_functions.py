"""The gradients of selected latents, of decoding and of squared errors, against finite differences."""

import pytest
import torch
import torch.nn.functional as F

from helpers.device import DEVICE, ON_GPU
from sae_transcoder.coder.autograd_functions import SelectedLatents, Selection, SparseDecode, SquaredError
from sae_transcoder.coder.sparse_products import AllLatents, DenseProducts, EmbeddingBags, LatentIndices, SparseProducts

pytestmark = [pytest.mark.device, pytest.mark.usefixtures("float32_coders")]


@pytest.fixture(autouse=True, params=["usual", "deterministic"] if ON_GPU else None)
def _kernels(request: pytest.FixtureRequest) -> None:
    """A GPU has kernels of two kinds."""
    if ON_GPU:
        torch.use_deterministic_algorithms(request.param == "deterministic")


KINDS = {
    "bags": lambda chosen: EmbeddingBags(chosen),
    "cut bags": lambda chosen: EmbeddingBags(chosen, 2),
    "products": lambda chosen: DenseProducts(chosen, torch.float64),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shifted", [True, False])
def test_the_selection_passes_gradcheck(shifted: bool, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, shift, weight, bias = (
        torch.randn(*shape, dtype=torch.float64, generator=generator).to(DEVICE).requires_grad_()
        for shape in [(6, 5), (5,), (12, 5), (12,)]
    )
    rows = torch.tensor([1, 4, 7, 11], device=DEVICE)
    indices = F.linear(x - shift if shifted else x, weight, bias).topk(3).indices
    by: list[SparseProducts] = [KINDS[kind](LatentIndices.from_top_k(indices, 12)), AllLatents(torch.float64)]

    def selected(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *shift: torch.Tensor) -> torch.Tensor:
        given = (x - shift[0] if shift else x).detach()
        preacts = F.linear(given, weight, bias).detach()
        main = Selection(preacts.gather(1, indices).flatten(), by[0])
        own, among = SelectedLatents.apply(
            x, *(shift or [None]), weight, bias, given, main, Selection(preacts[None, :, rows], by[1], rows)
        )
        return own if x.requires_grad else torch.cat([own, among.flatten()])  # x learns of the first selection alone

    parameters = (weight, bias, *([shift] if shifted else []))
    assert torch.autograd.gradcheck(selected, (x, *parameters))
    assert torch.autograd.gradcheck(selected, (x.detach(), *parameters))


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_and_the_squared_error_pass_gradcheck(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    acts, dead, weight, target = (
        torch.randn(*shape, dtype=torch.float64, generator=generator).to(DEVICE) for shape in [(18,), (1, 6, 4), (12, 5), (6, 5)]
    )
    indices = torch.rand(6, 12, generator=generator).to(DEVICE).topk(3).indices
    rows = torch.tensor([1, 4, 7, 11], device=DEVICE)
    selections = (
        Selection(acts, KINDS[kind](LatentIndices.from_top_k(indices, 12))),
        Selection(dead, AllLatents(torch.float64), rows),
    )

    def decoded(acts: torch.Tensor, dead: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        own, among = SparseDecode.apply(weight, selections, acts, dead)
        return SquaredError.apply(own, target) + SquaredError.apply(among, target) / 3

    assert torch.autograd.gradcheck(decoded, (acts.requires_grad_(), dead.requires_grad_(), weight.requires_grad_()))
