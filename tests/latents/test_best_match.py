"""The latent of another coder that is most like each: against all pairs, on permuted rows, with rows of zeros."""

import pytest
import torch
import torch.nn.functional as F

from helpers.device import DEVICE
from sae_transcoder.latents import directions
from sae_transcoder.latents.directions import best_match

pytestmark = pytest.mark.device


def rows(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def every(latents: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(latents), device=DEVICE)


def test_it_is_the_one_whose_smaller_cosine_is_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directions, "COMPARED", 7 * 50)  # seven latents at a time
    encoder, decoder = rows(40, 6, seed=0), rows(40, 5, seed=1)
    other_encoder, other_decoder = rows(50, 6, seed=2), rows(50, 5, seed=3)
    chosen = every(encoder)[3::2]
    latents, cosines = best_match((encoder, decoder), (other_encoder, other_decoder), chosen)
    of_encoders = F.cosine_similarity(encoder[chosen, None], other_encoder[None], dim=2)
    smaller = torch.minimum(of_encoders, F.cosine_similarity(decoder[chosen, None], other_decoder[None], dim=2))
    torch.testing.assert_close(cosines, smaller.max(dim=1).values)
    assert torch.equal(latents, smaller.argmax(dim=1))


def test_permuted_and_scaled_latents_are_found_and_turned_ones_are_not() -> None:
    encoder, decoder = rows(30, 16, seed=0), rows(30, 16, seed=1)
    permutation = torch.randperm(30, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    other_encoder, other_decoder = 3 * encoder[permutation], 0.1 * decoder[permutation]
    other_decoder[0] *= -1
    latents, cosines = best_match((encoder.bfloat16(), decoder.bfloat16()), (other_encoder, other_decoder), every(encoder))
    kept = every(encoder) != permutation[0]
    assert torch.equal(permutation[latents[kept]], every(encoder)[kept])
    assert (cosines[kept] > 0.999).all()
    assert cosines[permutation[0]] < 0.9


def test_a_row_of_zeros_is_like_none() -> None:
    decoder = rows(4, 8, seed=0)
    encoder = decoder.clone()
    encoder[1] = 0
    _, cosines = best_match((encoder, decoder), (decoder, decoder), every(decoder))
    assert cosines[1] <= 0
    assert (cosines[[0, 2, 3]] > 0.999).all()
