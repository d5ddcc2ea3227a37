"""Products of sparse activations: each kind equals products of dense matrices, for as many latents a token or differing numbers."""

import pytest
import torch

from helpers.device import DEVICE
from sae_transcoder.coder import sparse_products
from sae_transcoder.coder.chunk_sizes import CHUNK_SIZE
from sae_transcoder.coder.sparse_products import (
    PRODUCT_RULES,
    AllLatents,
    DenseProducts,
    EmbeddingBags,
    LatentIndices,
    ProductRules,
    SparseProducts,
    fastest_products,
)

TOKENS, LATENTS, WIDTH = 37, 24, 5
pytestmark = [pytest.mark.device, pytest.mark.usefixtures("on_the_device", "float32_coders")]


def generator() -> torch.Generator:
    return torch.Generator(DEVICE).manual_seed(0)


def alike() -> LatentIndices:
    """Three latents a token, the first of them on every token."""
    indices = torch.rand(TOKENS, LATENTS - 1, generator=generator()).topk(3).indices + 1
    indices[:, 0] = 0
    return LatentIndices.from_top_k(indices, LATENTS)


def ragged() -> LatentIndices:
    """None to five latents a token."""
    counts = torch.randint(0, 6, (TOKENS,), generator=generator())
    rows = [torch.randperm(LATENTS, generator=generator())[:n] for n in counts.tolist()]
    return LatentIndices(torch.cat(rows), counts.cumsum(0) - counts, LATENTS)


KINDS = {
    "bags": lambda chosen: EmbeddingBags(chosen),
    "bags cut at 4": lambda chosen: EmbeddingBags(chosen, 4),
    "products": lambda chosen: DenseProducts(chosen, torch.float32),
}


@pytest.mark.parametrize("chosen", [alike, ragged])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_gives_what_dense_matrices_give(kind: str, chosen: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHUNK_SIZE, DEVICE.type, 10 * LATENTS)  # in pieces
    choices = chosen()
    acts, weight, values, grad = (
        torch.randn(*shape, generator=generator())
        for shape in [(len(choices.latents),), (LATENTS, WIDTH), (TOKENS, WIDTH), (TOKENS, WIDTH)]
    )
    dense = torch.zeros(TOKENS, LATENTS)
    dense[choices.tokens, choices.latents] = acts
    by = KINDS[kind](choices)
    torch.testing.assert_close(by.matmul(acts, weight), dense @ weight)
    torch.testing.assert_close(by.sampled_matmul(grad, weight), (grad @ weight.T)[choices.tokens, choices.latents])
    torch.testing.assert_close(by.transposed_matmul(acts, values), dense.T @ values)
    torch.testing.assert_close(by.sum_over_tokens(acts), dense.sum(0))


def test_latents_that_all_fire_give_what_dense_matrices_give() -> None:
    acts, weight, values = (torch.randn(*shape, generator=generator()) for shape in [(TOKENS, 4), (4, WIDTH), (TOKENS, WIDTH)])
    by = AllLatents(torch.float32)
    torch.testing.assert_close(by.matmul(acts[None], weight), acts @ weight)
    torch.testing.assert_close(by.sampled_matmul(values, weight), (values @ weight.T)[None])
    torch.testing.assert_close(by.transposed_matmul(acts[None], values), acts.T @ values)
    torch.testing.assert_close(by.sum_over_tokens(acts[None]), acts.sum(0))


@pytest.mark.parametrize("kind", ["bags", "products", "every"])
def test_coders_side_by_side_give_what_each_gives(kind: str) -> None:
    """Their tokens and latents follow each other."""
    coders, k = 3, 2
    weight, values = (torch.randn(coders, rows, WIDTH, generator=generator()) for rows in (LATENTS, TOKENS))
    if kind == "every":
        acts = torch.randn(coders, TOKENS, LATENTS, generator=generator())
        together, alone = AllLatents(torch.float32, coders), [AllLatents(torch.float32)] * coders
        own = [acts[i, None] for i in range(coders)]
    else:
        indices = torch.rand(coders, TOKENS, LATENTS, generator=generator()).topk(k).indices
        acts = torch.randn(coders * TOKENS * k, generator=generator())
        offsets = torch.arange(coders)[:, None, None] * LATENTS
        every = LatentIndices.from_top_k((indices + offsets).flatten(0, 1), coders * LATENTS)
        together = EmbeddingBags(every) if kind == "bags" else DenseProducts(every, torch.float32, coders)
        alone = [DenseProducts(LatentIndices.from_top_k(which, LATENTS), torch.float32) for which in indices]
        own = list(acts.chunk(coders))
    weights, rows = weight.flatten(0, 1), values.flatten(0, 1)
    for name, whole, parts in [
        ("matmul", (acts, weights), zip(own, weight, strict=True)),
        ("sampled_matmul", (rows, weights), zip(values, weight, strict=True)),
        ("transposed_matmul", (acts, rows), zip(own, values, strict=True)),
        ("sum_over_tokens", (acts,), zip(own, strict=True)),
    ]:
        wanted = torch.cat([getattr(by, name)(*part) for by, part in zip(alone, parts, strict=True)])
        torch.testing.assert_close(getattr(together, name)(*whole), wanted)


def test_products_in_bfloat16_round_as_that_does_and_sums_stay_float32() -> None:
    choices = alike()
    acts, weight = torch.randn(len(choices.latents), generator=generator()), torch.randn(LATENTS, WIDTH, generator=generator())
    exact, rounded = DenseProducts(choices, torch.float32), DenseProducts(choices, torch.bfloat16)
    for name, arguments in {
        "matmul": (acts, weight),
        "sampled_matmul": (torch.randn(TOKENS, WIDTH), weight),
        "sum_over_tokens": (acts,),
    }.items():
        found, wanted = getattr(rounded, name)(*arguments), getattr(exact, name)(*arguments)
        assert found.dtype == torch.float32
        assert not torch.equal(found, wanted)
        assert (found - wanted).norm() / wanted.norm() < 0.005


def test_a_bag_is_at_most_so_long_whatever_fires() -> None:
    by = EmbeddingBags(alike(), 4)
    begins, _ = by.split_bags
    ends = torch.cat([begins[1:], torch.tensor([len(by.indices.latents)])])
    assert (ends - begins).max() <= 4
    whole = EmbeddingBags(alike())
    starts = whole.by_latent[2]
    assert (torch.cat([starts[1:], torch.tensor([len(whole.indices.latents)])]) - starts).max() == TOKENS


def test_a_gpu_multiplies_and_cuts_and_a_cpu_does_neither_for_what_fires() -> None:
    assert {"cpu": ProductRules(0, 4, None), "cuda": ProductRules(500, 500, 256)} == PRODUCT_RULES


def test_one_place_decides_by_device_and_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    def way(latents: int, k: int, *, many: bool = False) -> SparseProducts:
        return fastest_products(LatentIndices.from_top_k(torch.zeros(2, k, dtype=torch.long), latents), torch.float32, many=many)

    monkeypatch.setitem(sparse_products.PRODUCT_RULES, DEVICE.type, ProductRules(0, 4, None))  # a CPU's
    assert all(isinstance(by, EmbeddingBags) and by.max_bag is None for by in (way(4608, 64), way(8, 8)))
    assert [type(way(latents, 128, many=True)) for latents in (200, 512, 513)] == [DenseProducts, DenseProducts, EmbeddingBags]
    monkeypatch.setitem(sparse_products.PRODUCT_RULES, DEVICE.type, ProductRules(500, 500, 256))  # a GPU's
    assert isinstance(way(4608, 64), DenseProducts)
    assert isinstance(way(262_144, 64), EmbeddingBags)
    assert way(262_144, 64).max_bag == 256
