"""Which latents are chosen: those of torch's top-k, in two stages too."""

import pytest
import torch

from helpers.device import DEVICE
from sae_transcoder.coder.chunk_sizes import CHUNK_SIZE, token_chunks
from sae_transcoder.coder.latent_selection import TWO_STAGES, TwoStages, top_k


@pytest.mark.device
@pytest.mark.parametrize("stages", [TWO_STAGES["cpu"], TwoStages(32, 1, 512)], ids=["as here", "as on a GPU"])
@pytest.mark.parametrize(("latents", "k"), [(512, 8), (512, 16), (1024, 64), (2048, 32), (2050, 32), (2048, 2048), (1, 1)])
def test_the_largest_are_those_of_torch(latents: int, k: int, stages: TwoStages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TWO_STAGES, DEVICE.type, stages)
    preacts = torch.randn(50, latents, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    preacts[:10] = -torch.inf  # as for AuxK, where fewer latents than k may be dead
    preacts[:10, ::3] = 1.0
    values, indices = top_k(preacts, k)
    assert torch.equal(values.sort().values, preacts.topk(k).values.sort().values)
    assert torch.equal(preacts.gather(1, indices), values)
    assert all(len(set(row)) == k for row in indices.tolist())


@pytest.mark.parametrize(("tokens", "latents"), [(1, 1), (4096, 2048), (4097, 2048), (10, 2**22), (65_536, 4608)])
def test_pieces_are_of_equal_size_and_small_enough(tokens: int, latents: int) -> None:
    bounds = list(token_chunks(tokens, latents, "cpu"))
    sizes = [stop - start for start, stop in bounds]
    assert [start for start, _ in bounds] == [0, *[stop for _, stop in bounds[:-1]]]
    assert (sum(sizes), max(sizes) - min(sizes) <= 1) == (tokens, True)
    assert max(sizes) == 1 or max(sizes) * latents <= CHUNK_SIZE["cpu"]
