"""The corrections of sparsify's coder: right by autograd, and each still needed. A test named `..._still_...` fails once sparsify
has mended the fault: then the correction may go."""

import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from sparsify import SparseCoder, SparseCoderConfig, sparse_coder
from sparsify.fused_encoder import fused_encoder

from helpers.device import DEVICE, ON_GPU, by_device
from sae_transcoder.coder.chunk_sizes import CHUNK_SIZE
from sae_transcoder.coder.corrected_coder import CorrectedCoder, product_dtype

pytestmark = [pytest.mark.device, pytest.mark.usefixtures("float32_coders")]

TOKENS, WIDTH, LATENTS, K = 24, 8, 32, 4
# An absolute tolerance of float32 sums, which a GPU takes in another order than dense autograd.
SUMS = by_device(cpu=1e-6, gpu=1e-5)


@pytest.fixture(autouse=True, params=["usual", "deterministic"] if ON_GPU else None)
def _kernels(request: pytest.FixtureRequest) -> None:
    """A GPU has kernels of two kinds."""
    if ON_GPU:
        torch.use_deterministic_algorithms(request.param == "deterministic")


def pair(kind: type[SparseCoder], device: torch.device = DEVICE, **settings: object) -> tuple[SparseCoder, torch.Tensor]:
    """A coder with non-trivial parameters and an input; equal for both kinds."""
    torch.manual_seed(0)
    coder = kind(WIDTH, SparseCoderConfig(num_latents=LATENTS, k=K, **settings))
    for parameter in coder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return coder.to(device), torch.randn(TOKENS, WIDTH).to(device)


def dense_losses(coder: SparseCoder, x: torch.Tensor, dead: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """FVU, AuxK loss and Multi-TopK FVU written with dense tensors and left to autograd."""
    centered_input = x if coder.cfg.transcode else x - coder.b_dec
    preacts = F.linear(centered_input, coder.encoder.weight, coder.encoder.bias)
    variance = (x - x.mean(0)).pow(2).sum()

    def reconstruct(among: torch.Tensor, k: int) -> torch.Tensor:
        chosen = torch.where(among, preacts, -torch.inf).topk(k).indices
        latents = torch.zeros_like(preacts).scatter(1, chosen, F.relu(preacts.gather(1, chosen)))
        return latents @ coder.W_dec

    everything = torch.ones(LATENTS, dtype=torch.bool, device=x.device)
    skip = 0 if coder.W_skip is None else x @ coder.W_skip.T
    error = x - (reconstruct(everything, coder.cfg.k) + coder.b_dec + skip)
    multi = (x - (reconstruct(everything, 4 * coder.cfg.k) + coder.b_dec + skip)).pow(2).sum() / variance
    aux = torch.zeros((), device=x.device)
    if dead is not None:
        count = int(dead.sum())
        predicted = reconstruct(dead, min(WIDTH // 2, count))
        aux = min(count / (WIDTH // 2), 1.0) * (predicted - error.detach()).pow(2).sum() / variance
    return error.pow(2).sum() / variance, aux, multi


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize("many", [2, 5, 10], ids=lambda n: f"one of {n} dead")  # more than half the width, and fewer
@pytest.mark.parametrize("transcode", [False, True])
@pytest.mark.parametrize("skip_connection", [False, True])
def test_losses_and_gradients_equal_dense_autograd(transcode: bool, skip_connection: bool, many: int) -> None:
    coder, x = pair(CorrectedCoder, multi_topk=True, transcode=transcode, skip_connection=skip_connection)
    dead = torch.arange(LATENTS, device=DEVICE) % many == 0
    expected = dense_losses(coder, x, dead)
    wanted = torch.autograd.grad(expected[0] + expected[1] / 32 + expected[2] / 8, list(coder.parameters()))
    out = coder(x=x, y=x, dead=[dead.nonzero()[:, 0]])
    got = torch.autograd.grad(out.fvu + out.auxk_loss / 32 + out.multi_topk_fvu / 8, list(coder.parameters()))
    losses = (out.fvu, out.auxk_loss, out.multi_topk_fvu)
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=by_device(cpu=1.3e-6, gpu=1e-5))
    torch.testing.assert_close(got, wanted, atol=SUMS, rtol=1e-4)


def test_groupmax_chooses_one_latent_of_each_group() -> None:
    coder, x = pair(CorrectedCoder, activation="groupmax")
    plain, _ = pair(SparseCoder, activation="groupmax")
    out, plain_out = coder(x=x), plain(x=x)
    assert torch.equal(out.latent_indices // (LATENTS // K), torch.arange(K, device=DEVICE).expand(TOKENS, K))
    torch.testing.assert_close(out.fvu, plain_out.fvu)


def test_selecting_piece_by_piece_gives_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    coder, x = pair(CorrectedCoder, multi_topk=True)
    dead = torch.arange(0, LATENTS, 5, device=DEVICE)
    whole = coder(x=x, dead=[dead])
    monkeypatch.setitem(CHUNK_SIZE, DEVICE.type, 5 * LATENTS)  # 24 tokens in chunks of 4 and 5
    in_chunks = coder(x=x, dead=[dead])
    torch.testing.assert_close(in_chunks, whole)


def test_where_all_chosen_latents_are_positive_weights_equal_sparsifys() -> None:
    corrected, x = pair(CorrectedCoder)
    plain, _ = pair(SparseCoder)
    for coder in (corrected, plain):
        coder.encoder.bias.data += 3
        coder(x=x).fvu.backward()
    for ours, sparsifys in zip(corrected.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, sparsifys.grad, atol=SUMS, rtol=1e-4)


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
    weight = torch.randn(LATENTS, WIDTH, device=DEVICE, requires_grad=True)
    bias = torch.zeros(LATENTS, device=DEVICE, requires_grad=True)
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


def test_no_decoder_is_tritons_though_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_transcoder.coder import corrected_coder

    monkeypatch.setattr(corrected_coder.utils, "triton_decode", lambda *_: pytest.fail("a kernel that misreads gradients"))
    for kind in (SparseCoder, CorrectedCoder):
        coder, x = pair(kind, torch.device("cpu"))
        coder(x=x).fvu.backward()
    assert sparse_coder.decoder_impl is corrected_coder.utils.eager_decode


@pytest.mark.slow
def test_importing_our_coder_asks_no_driver_and_sparsify_still_does() -> None:
    """Where a GPU is asked, a context of half a GB is made on it."""
    asking = "import torch; torch.cuda.is_available = lambda: True; torch.cuda._lazy_init = lambda: exit(3); import {}"
    ours = ", ".join(f"sae_transcoder.{module}" for module in ("coder.corrected_coder", "preflight.plan", "coder.build_optimizers"))
    codes = [
        subprocess.run([sys.executable, "-c", asking.format(name)], capture_output=True).returncode for name in (ours, "sparsify")
    ]
    assert codes == [0, 3]


@pytest.mark.parametrize("kind", [SparseCoder, CorrectedCoder])
def test_on_a_gpu_that_has_it_coders_multiply_in_bfloat16(kind: type[SparseCoder], monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_transcoder.coder import corrected_coder

    coder, x = pair(kind, torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert product_dtype.__wrapped__(torch.device("cuda")) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert product_dtype.__wrapped__(torch.device("cuda")) == torch.float32
    exact = coder(x=x).fvu
    monkeypatch.setattr(corrected_coder, "product_dtype", lambda device: torch.bfloat16)
    monkeypatch.setattr(torch, "autocast", partial(autocast_of_a_cpu, torch.autocast))
    assert coder(x=x).fvu != exact
    torch.testing.assert_close(coder(x=x).fvu, exact, rtol=0.02, atol=0)


def autocast_of_a_cpu(real: type, device: str, **settings: object) -> object:
    """autocast for "cuda", which does nothing here, on the CPU."""
    return real("cpu", **settings)


def test_sparsify_still_takes_triton_by_import_and_not_by_device() -> None:
    import inspect

    import sparsify.utils

    source = inspect.getsource(sparsify.utils)
    assert "decoder_impl = triton_decode" in source
    assert "is_cuda" not in source


@pytest.mark.parametrize("skip_connection", [False, True])
def test_a_coders_own_losses_do_not_train_earlier_coders(skip_connection: bool) -> None:
    coder, x = pair(CorrectedCoder, multi_topk=True, skip_connection=skip_connection)
    x = x.requires_grad_()
    out = coder(x=x, y=x.detach(), dead=[torch.arange(0, LATENTS, 5, device=DEVICE)])
    (given,) = torch.autograd.grad(out.auxk_loss + out.multi_topk_fvu, x, allow_unused=True)
    assert given is None or not given.any()
