"""Coders before training, by the settings that shape them, and what sparsify reads of them once they are stored."""

import json
from pathlib import Path

import pytest
import torch
from sparsify import SparseCoder

from helpers.device import DEVICE
from helpers.tiny_models import tiny_config
from helpers.trainers import train_alone
from sae_transcoder.language_model.forward import Activations
from sae_transcoder.training.coder_copies import copy_coders
from sae_transcoder.training.coder_trainer import CoderTrainer

pytestmark = pytest.mark.device


def new_run(widths: dict[str, int], model_type: str = "sae", **settings: object) -> CoderTrainer:
    return CoderTrainer(tiny_config(model_type, batch_size=1, lr=0.01, **settings), widths, 4, DEVICE)


def train(run: CoderTrainer, widths: dict[str, int]) -> None:
    """Trains a run on a batch of random activations."""
    activations = {point: torch.randn(1, 16, d, device=DEVICE) for point, d in widths.items()}
    train_alone(run, torch.zeros(1, 16, dtype=torch.long), {p: Activations(x, x) for p, x in activations.items()})


@pytest.mark.parametrize("model_type", ["sae", "transcoder"])
def test_decoder_rows_start_in_the_direction_of_their_encoder_rows_with_the_norm_that_is_set(model_type: str) -> None:
    coder = new_run({"layers.1": 32}, model_type, decoder_init_norm=0.1, normalize_decoder=False).coders["layers.1"]
    torch.testing.assert_close(coder.W_dec.norm(dim=1), torch.full((coder.num_latents,), 0.1, device=DEVICE))
    cosines = torch.cosine_similarity(coder.W_dec, coder.encoder.weight)
    torch.testing.assert_close(cosines, torch.ones_like(cosines))
    assert coder.W_dec.requires_grad
    usual = new_run({"layers.1": 32}, model_type, normalize_decoder=False).coders["layers.1"]
    assert torch.equal(usual.encoder.weight, coder.encoder.weight), "the encoder is as the seed has it"


@pytest.mark.parametrize(("start", "expected"), [("mean", 5.0), ("zeros", 0.0)])
@pytest.mark.parametrize("model_type", ["sae", "transcoder"])
def test_biases_start_at_the_first_batchs_mean_or_at_zero(model_type: str, start: str, expected: float) -> None:
    run = new_run({"layers.1": 32}, model_type, b_dec_init=start, optimizer="adam", lr_warmup_steps=1000)
    x = torch.full((1, 16, 32), 5.0, device=DEVICE) + torch.randn(1, 16, 32, device=DEVICE) / 100
    train_alone(
        run, torch.zeros(1, 16, dtype=torch.long), {"layers.1": Activations(x, x)}
    )  # the first step of a warmup moves little
    coder = run.coders["layers.1"]
    torch.testing.assert_close(coder.b_dec.detach(), torch.full((32,), expected, device=DEVICE), rtol=0, atol=0.02)
    centred = (
        -5 * coder.encoder.weight.detach().sum(1)
        if (model_type, start) == ("transcoder", "mean")
        else torch.zeros(128, device=DEVICE)
    )
    torch.testing.assert_close(coder.encoder.bias.detach(), centred, rtol=0, atol=0.05)


def test_dictionaries_nested_by_shares_are_those_of_each_hookpoints_latents() -> None:
    widths = {"narrow": 16, "wide": 32}
    run = new_run(widths, matryoshka_widths=[], auxk_per_level=True, dead_feature_threshold=0, auxk_alpha=0.1)
    for _ in range(2):
        train(run, widths)
    assert {name: coder.matryoshka_widths for name, coder in run.coders.items()} == {
        "narrow": [8, 16, 32, 64],
        "wide": [16, 32, 64, 128],
    }
    metrics = run.metrics()
    assert [name for name in metrics if name.startswith("fvu_width")] == [
        *(f"fvu_width_{width}/narrow" for width in (8, 16, 32)),
        *(f"fvu_width_{width}/wide" for width in (16, 32, 64)),
    ]
    named = new_run(
        {"narrow": 16}, matryoshka_widths=[8, 16, 32, 64], auxk_per_level=True, dead_feature_threshold=0, auxk_alpha=0.1
    )
    shares = new_run({"narrow": 16}, matryoshka_widths=[], auxk_per_level=True, dead_feature_threshold=0, auxk_alpha=0.1)
    for one in (named, shares):
        torch.manual_seed(0)
        for _ in range(3):
            train(one, {"narrow": 16})
    assert torch.equal(named.coders["narrow"].W_dec, shares.coders["narrow"].W_dec)


@pytest.mark.parametrize("activation", ["topk", "groupmax", "batchtopk", "jumprelu"])
def test_sparsify_reads_the_files_of_every_kind_and_computes_topk_of_those_it_does_not_know(
    activation: str, tmp_path: Path
) -> None:
    run = new_run({"layers.1": 32}, activation=activation)
    train(run, {"layers.1": 32})
    (coder,) = copy_coders(run).values()
    coder.save_to_disk(tmp_path)
    written = json.loads((tmp_path / "cfg.json").read_text())
    own = activation in ("topk", "groupmax")
    assert (written["activation"], written.get("trained_activation")) == ((activation, None) if own else ("topk", activation))
    read = SparseCoder.load_from_disk(tmp_path, device=str(DEVICE))
    assert torch.equal(read.W_dec, coder.W_dec)
    assert read(torch.randn(8, 32, device=DEVICE)).latent_acts.shape == (8, 4)
