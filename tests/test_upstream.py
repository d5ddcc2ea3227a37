"""The corrections of sparsify's coder: right by autograd, and each still needed. A test named `..._still_...` fails once sparsify
has mended the fault: then the correction may go."""

import pytest
import torch
import torch.nn.functional as F
from sparsify import SparseCoder, SparseCoderConfig
from sparsify.fused_encoder import fused_encoder

from sae_transcoder.upstream import PIECE, Chosen, CorrectedCoder, SelectedLatents, SparseDecode, SquaredError, largest

TOKENS, WIDTH, LATENTS, K = 24, 8, 32, 4


def pair(kind: type[SparseCoder], **settings: object) -> tuple[SparseCoder, torch.Tensor]:
    """A coder with non-trivial parameters and an input; equal for both kinds."""
    torch.manual_seed(0)
    coder = kind(WIDTH, SparseCoderConfig(num_latents=LATENTS, k=K, **settings))
    for parameter in coder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return coder, torch.randn(TOKENS, WIDTH)


def dense_losses(coder: SparseCoder, x: torch.Tensor, dead: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """FVU, AuxK loss and Multi-TopK FVU written with dense tensors and left to autograd."""
    given = x if coder.cfg.transcode else x - coder.b_dec
    preacts = F.linear(given, coder.encoder.weight, coder.encoder.bias)
    variance = (x - x.mean(0)).pow(2).sum()

    def reconstruct(among: torch.Tensor, k: int) -> torch.Tensor:
        chosen = torch.where(among, preacts, -torch.inf).topk(k).indices
        latents = torch.zeros_like(preacts).scatter(1, chosen, F.relu(preacts.gather(1, chosen)))
        return latents @ coder.W_dec

    everything = torch.ones(LATENTS, dtype=torch.bool)
    skip = 0 if coder.W_skip is None else x @ coder.W_skip.T
    error = x - (reconstruct(everything, coder.cfg.k) + coder.b_dec + skip)
    multi = (x - (reconstruct(everything, 4 * coder.cfg.k) + coder.b_dec + skip)).pow(2).sum() / variance
    aux = torch.zeros(())
    if dead is not None:
        count = int(dead.sum())
        predicted = reconstruct(dead, min(WIDTH // 2, count))
        aux = min(count / (WIDTH // 2), 1.0) * (predicted - error.detach()).pow(2).sum() / variance
    return error.pow(2).sum() / variance, aux, multi


@pytest.mark.parametrize("transcode", [False, True])
@pytest.mark.parametrize("skip_connection", [False, True])
def test_losses_and_gradients_equal_dense_autograd(transcode: bool, skip_connection: bool) -> None:
    coder, x = pair(CorrectedCoder, multi_topk=True, transcode=transcode, skip_connection=skip_connection)
    dead = torch.arange(LATENTS) % 5 == 0
    expected = dense_losses(coder, x, dead)
    wanted = torch.autograd.grad(expected[0] + expected[1] / 32 + expected[2] / 8, list(coder.parameters()))
    out = coder(x=x, y=x, dead_mask=dead)
    got = torch.autograd.grad(out.fvu + out.auxk_loss / 32 + out.multi_topk_fvu / 8, list(coder.parameters()))
    torch.testing.assert_close((out.fvu, out.auxk_loss, out.multi_topk_fvu), expected)
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-4)


def test_groupmax_chooses_one_latent_of_each_group() -> None:
    coder, x = pair(CorrectedCoder, activation="groupmax")
    plain, _ = pair(SparseCoder, activation="groupmax")
    out, theirs = coder(x=x), plain(x=x)
    assert torch.equal(out.latent_indices // (LATENTS // K), torch.arange(K).expand(TOKENS, K))
    torch.testing.assert_close(out.fvu, theirs.fvu)


@pytest.mark.parametrize(("latents", "k"), [(512, 8), (512, 16), (1024, 64), (2048, 32), (2050, 32), (2048, 2048), (1, 1)])
def test_the_largest_are_those_of_torch(latents: int, k: int) -> None:
    preacts = torch.randn(50, latents, generator=torch.Generator().manual_seed(0))
    preacts[:10] = -torch.inf  # as for AuxK, where fewer latents than k may be dead
    preacts[:10, ::3] = 1.0
    values, indices = largest(preacts, k)
    assert torch.equal(values.sort().values, preacts.topk(k).values.sort().values)
    assert torch.equal(preacts.gather(1, indices), values)
    assert all(len(set(row)) == k for row in indices.tolist())


def test_selecting_piece_by_piece_gives_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    coder, x = pair(CorrectedCoder, multi_topk=True)
    dead = torch.arange(LATENTS) % 5 == 0
    whole = coder(x=x, dead_mask=dead)
    monkeypatch.setitem(PIECE, "cpu", 5 * LATENTS)  # 24 tokens in pieces of 5
    in_pieces = coder(x=x, dead_mask=dead)
    torch.testing.assert_close(in_pieces, whole)


@pytest.mark.parametrize("shifted", [True, False])
def test_the_selection_passes_gradcheck(shifted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, shift, weight, bias = (
        torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)
        for shape in [(6, 5), (5,), (12, 5), (12,)]
    )
    chosen = Chosen(F.linear(x - shift if shifted else x, weight, bias).topk(3).indices, 12)

    def selected(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *shift: torch.Tensor) -> torch.Tensor:
        given = (x - shift[0] if shift else x).detach()
        preacts = F.linear(given, weight, bias).detach().gather(1, chosen.indices)
        return SelectedLatents.apply(x, *(shift or [None]), weight, bias, given, preacts, chosen)

    assert torch.autograd.gradcheck(selected, (x, weight, bias, *([shift] if shifted else [])))


def test_the_decoder_and_the_squared_error_pass_gradcheck() -> None:
    generator = torch.Generator().manual_seed(0)
    acts, weight, target = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in [(6, 3), (12, 5), (6, 5)])
    chosen = Chosen(torch.rand(6, 12, generator=generator).topk(3).indices, 12)

    def decoded(acts: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return SquaredError.apply(SparseDecode.apply(acts, weight, chosen), target)

    assert torch.autograd.gradcheck(decoded, (acts.requires_grad_(), weight.requires_grad_()))


def test_where_all_chosen_latents_are_positive_weights_equal_sparsifys() -> None:
    ours, x = pair(CorrectedCoder)
    theirs, _ = pair(SparseCoder)
    for coder in (ours, theirs):
        coder.encoder.bias.data += 3
        coder(x=x).fvu.backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-6, rtol=1e-4)


def test_latents_at_or_below_zero_get_no_gradient() -> None:
    coder, x = pair(CorrectedCoder)
    coder.encoder.bias.data -= 100
    out = coder(x=x)
    out.fvu.backward()
    assert (out.latent_acts == 0).all()
    assert not coder.encoder.weight.grad.any()
    assert not coder.encoder.bias.grad.any()


def test_with_multi_topk_the_latents_returned_are_those_of_k() -> None:
    coder, x = pair(CorrectedCoder, multi_topk=True)
    single, _ = pair(CorrectedCoder)
    assert coder(x=x).latent_indices.shape == (TOKENS, K)
    torch.testing.assert_close(coder(x=x).sae_out, single(x=x).sae_out)


def test_sparsify_still_ignores_the_gradient_of_preactivations() -> None:
    _, x = pair(SparseCoder)
    weight, bias = torch.randn(LATENTS, WIDTH, requires_grad=True), torch.zeros(LATENTS, requires_grad=True)
    fused_encoder(x, weight, bias, K, "topk").pre_acts.sum().backward()
    assert not weight.grad.any()


def test_sparsify_still_gives_flat_latents_a_gradient() -> None:
    coder, x = pair(SparseCoder)
    coder.encoder.bias.data -= 100
    coder(x=x).fvu.backward()
    assert coder.encoder.weight.grad.any()


def test_sparsify_still_returns_4k_latents_with_multi_topk() -> None:
    coder, x = pair(SparseCoder, multi_topk=True)
    assert coder(x=x).latent_indices.shape == (TOKENS, 4 * K)


def test_sparsify_still_leaves_the_skip_out_of_multi_topk() -> None:
    coder, x = pair(SparseCoder, multi_topk=True, skip_connection=True)
    with_skip = coder(x=x).multi_topk_fvu
    coder.W_skip.data.zero_()
    assert torch.equal(with_skip, coder(x=x).multi_topk_fvu)


def test_sparsify_still_materialises_tokens_by_k_by_width() -> None:
    import inspect

    from sparsify.fused_encoder import FusedEncoder

    assert "grad_values.unsqueeze(2) * input.unsqueeze(1)" in inspect.getsource(FusedEncoder.backward)


def test_on_a_cpu_the_decoder_is_the_eager_one_though_triton_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_transcoder import upstream

    monkeypatch.setattr(upstream, "TRITON", True)
    monkeypatch.setattr(upstream.utils, "triton_decode", lambda *_: pytest.fail("a GPU's kernel on a CPU"))
    for kind in (SparseCoder, CorrectedCoder):
        coder, x = pair(kind)
        coder(x=x).fvu.backward()


def test_sparsify_still_takes_triton_by_import_and_not_by_device() -> None:
    import inspect

    import sparsify.utils

    source = inspect.getsource(sparsify.utils)
    assert "decoder_impl = triton_decode" in source
    assert "is_cuda" not in source


def test_a_coders_own_losses_do_not_train_earlier_coders() -> None:
    coder, x = pair(CorrectedCoder, multi_topk=True)
    x = x.requires_grad_()
    out = coder(x=x, y=x.detach(), dead_mask=torch.arange(LATENTS) % 5 == 0)
    (given,) = torch.autograd.grad(out.auxk_loss + out.multi_topk_fvu, x, allow_unused=True)
    assert given is None or not given.any()
