"""Sums of the rows that fire: each kind equals products of dense matrices, for as many latents a token or differing numbers."""

from collections.abc import Iterator

import pytest
import torch

from helpers.device import DEVICE
from sae_transcoder.coder import row_sums
from sae_transcoder.coder.pieces import PIECE
from sae_transcoder.coder.row_sums import WAYS, Bags, Every, LatentIndices, Products, Sums, Way, sums

TOKENS, LATENTS, WIDTH = 37, 24, 5
pytestmark = [pytest.mark.device, pytest.mark.usefixtures("float32_coders")]


@pytest.fixture(autouse=True)
def _on_the_device() -> Iterator[None]:
    """Tensors are made on the device under test."""
    with torch.device(DEVICE):
        yield


def generator() -> torch.Generator:
    return torch.Generator(DEVICE).manual_seed(0)


def alike() -> LatentIndices:
    """Three latents a token, the first of them on every token."""
    indices = torch.rand(TOKENS, LATENTS - 1, generator=generator()).topk(3).indices + 1
    indices[:, 0] = 0
    return LatentIndices.alike(indices, LATENTS)


def ragged() -> LatentIndices:
    """None to five latents a token."""
    counts = torch.randint(0, 6, (TOKENS,), generator=generator())
    rows = [torch.randperm(LATENTS, generator=generator())[:n] for n in counts.tolist()]
    return LatentIndices(torch.cat(rows), counts.cumsum(0) - counts, LATENTS)


KINDS = {
    "bags": lambda chosen: Bags(chosen),
    "bags cut at 4": lambda chosen: Bags(chosen, 4),
    "products": lambda chosen: Products(chosen, torch.float32),
}


@pytest.mark.parametrize("chosen", [alike, ragged])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_gives_what_dense_matrices_give(kind: str, chosen: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PIECE, DEVICE.type, 10 * LATENTS)  # in pieces
    choices = chosen()
    acts, weight, values, grad = (
        torch.randn(*shape, generator=generator())
        for shape in [(len(choices.latent),), (LATENTS, WIDTH), (TOKENS, WIDTH), (TOKENS, WIDTH)]
    )
    dense = torch.zeros(TOKENS, LATENTS)
    dense[choices.token, choices.latent] = acts
    by = KINDS[kind](choices)
    torch.testing.assert_close(by.rows(acts, weight), dense @ weight)
    torch.testing.assert_close(by.dots(grad, weight), (grad @ weight.T)[choices.token, choices.latent])
    torch.testing.assert_close(by.over_tokens(acts, values), dense.T @ values)
    torch.testing.assert_close(by.totals(acts), dense.sum(0))


def test_latents_that_all_fire_give_what_dense_matrices_give() -> None:
    acts, weight, values = (torch.randn(*shape, generator=generator()) for shape in [(TOKENS, 4), (4, WIDTH), (TOKENS, WIDTH)])
    by = Every(torch.float32)
    torch.testing.assert_close(by.rows(acts[None], weight), acts @ weight)
    torch.testing.assert_close(by.dots(values, weight), (values @ weight.T)[None])
    torch.testing.assert_close(by.over_tokens(acts[None], values), acts.T @ values)
    torch.testing.assert_close(by.totals(acts[None]), acts.sum(0))


@pytest.mark.parametrize("kind", ["bags", "products", "every"])
def test_coders_side_by_side_give_what_each_gives(kind: str) -> None:
    """Their tokens and latents follow each other."""
    coders, k = 3, 2
    weight, values = (torch.randn(coders, rows, WIDTH, generator=generator()) for rows in (LATENTS, TOKENS))
    if kind == "every":
        acts = torch.randn(coders, TOKENS, LATENTS, generator=generator())
        together, alone = Every(torch.float32, coders), [Every(torch.float32)] * coders
        own = [acts[i, None] for i in range(coders)]
    else:
        indices = torch.rand(coders, TOKENS, LATENTS, generator=generator()).topk(k).indices
        acts = torch.randn(coders * TOKENS * k, generator=generator())
        offsets = torch.arange(coders)[:, None, None] * LATENTS
        every = LatentIndices.alike((indices + offsets).flatten(0, 1), coders * LATENTS)
        together = Bags(every) if kind == "bags" else Products(every, torch.float32, coders)
        alone = [Products(LatentIndices.alike(which, LATENTS), torch.float32) for which in indices]
        own = list(acts.chunk(coders))
    weights, rows = weight.flatten(0, 1), values.flatten(0, 1)
    for name, whole, parts in [
        ("rows", (acts, weights), zip(own, weight, strict=True)),
        ("dots", (rows, weights), zip(values, weight, strict=True)),
        ("over_tokens", (acts, rows), zip(own, values, strict=True)),
        ("totals", (acts,), zip(own, strict=True)),
    ]:
        wanted = torch.cat([getattr(by, name)(*part) for by, part in zip(alone, parts, strict=True)])
        torch.testing.assert_close(getattr(together, name)(*whole), wanted)


def test_products_in_bfloat16_round_as_that_does_and_sums_stay_float32() -> None:
    choices = alike()
    acts, weight = torch.randn(len(choices.latent), generator=generator()), torch.randn(LATENTS, WIDTH, generator=generator())
    exact, rounded = Products(choices, torch.float32), Products(choices, torch.bfloat16)
    for name, arguments in {"rows": (acts, weight), "dots": (torch.randn(TOKENS, WIDTH), weight), "totals": (acts,)}.items():
        found, wanted = getattr(rounded, name)(*arguments), getattr(exact, name)(*arguments)
        assert found.dtype == torch.float32
        assert not torch.equal(found, wanted)
        assert (found - wanted).norm() / wanted.norm() < 0.005


def test_a_bag_is_at_most_so_long_whatever_fires() -> None:
    by = Bags(alike(), 4)
    begins, _ = by.cuts
    ends = torch.cat([begins[1:], torch.tensor([len(by.chosen.latent)])])
    assert (ends - begins).max() <= 4
    whole = Bags(alike())
    starts = whole.by_latent[2]
    assert (torch.cat([starts[1:], torch.tensor([len(whole.chosen.latent)])]) - starts).max() == TOKENS


def test_a_gpu_multiplies_and_cuts_and_a_cpu_does_neither_for_what_fires() -> None:
    assert {"cpu": Way(0, 4, None), "cuda": Way(500, 500, 256)} == WAYS


def test_one_place_decides_by_device_and_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    def way(latents: int, k: int, *, auxk: bool = False) -> Sums:
        return sums(LatentIndices.alike(torch.zeros(2, k, dtype=torch.long), latents), torch.float32, auxk=auxk)

    monkeypatch.setitem(row_sums.WAYS, DEVICE.type, Way(0, 4, None))  # a CPU's
    assert all(isinstance(by, Bags) and by.cut is None for by in (way(4608, 64), way(8, 8)))
    assert [type(way(latents, 128, auxk=True)) for latents in (200, 512, 513)] == [Products, Products, Bags]
    monkeypatch.setitem(row_sums.WAYS, DEVICE.type, Way(500, 500, 256))  # a GPU's
    assert isinstance(way(4608, 64), Products)
    assert isinstance(way(262_144, 64), Bags)
    assert way(262_144, 64).cut == 256
