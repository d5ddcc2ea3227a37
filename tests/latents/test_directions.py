"""Which tokens a latent's rows raise and read, in several families of models; which latents are near."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, PreTrainedModel

from helpers.device import DEVICE
from helpers.tiny_models import SIZES, tiny_causal_model
from sae_transcoder.latents import directions

pytestmark = pytest.mark.device


def gemma2() -> PreTrainedModel:
    """A model that norms the output of its MLPs, with norms whose weights are not all alike."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Gemma2Config(**SIZES, head_dim=8, num_key_value_heads=2)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.copy_(torch.rand_like(parameter))
    return model.to(DEVICE)


def rows(count: int = 5) -> torch.Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(1)).to(DEVICE)


def test_the_output_of_a_layer_is_unembedded_through_the_final_norm() -> None:
    model = tiny_causal_model("neox")
    torch.nn.init.normal_(model.gpt_neox.final_layer_norm.bias)
    places = directions.surroundings(model, "layers.1", transcoder=False)
    raised, values, lowered, low_values = directions.token_effects(model, rows(), places.after, 3)
    norm = model.gpt_neox.final_layer_norm
    logits = (norm(rows()) - norm.bias) @ model.get_output_embeddings().weight.T
    assert raised.tolist() == logits.topk(3).indices.tolist()
    assert torch.allclose(values, logits.topk(3).values, atol=1e-5)
    assert lowered.tolist() == logits.topk(3, largest=False).indices.tolist()
    assert torch.allclose(low_values, logits.topk(3, largest=False).values, atol=1e-5)


def test_the_output_of_an_mlp_passes_the_norm_that_follows_it() -> None:
    model = gemma2()
    places = directions.surroundings(model, "layers.2.mlp", transcoder=True)
    layer = model.model.layers[2]
    assert torch.allclose(places.after(rows()), layer.post_feedforward_layernorm(rows()))
    embeddings = model.model.embed_tokens.weight
    assert torch.allclose(places.before(embeddings), layer.pre_feedforward_layernorm(embeddings))


def test_the_next_layers_norm_is_not_taken_for_one_of_the_layer() -> None:
    places = directions.surroundings(gemma2(), "layers.1", transcoder=False)
    assert torch.equal(places.after(rows()), rows())
    assert torch.equal(places.before(rows()), rows())


@pytest.mark.parametrize(
    ("family", "mlp", "norm"), [("gpt2", "h.1.mlp", "h.1.ln_2"), ("neox", "layers.1.mlp", "layers.1.post_attention_layernorm")]
)
def test_a_transcoder_reads_embeddings_through_the_norm_before_its_module(family: str, mlp: str, norm: str) -> None:
    model = tiny_causal_model(family)
    places = directions.surroundings(model, mlp, transcoder=True)
    module = model.base_model.get_submodule(norm)
    torch.nn.init.normal_(module.weight)
    weight = model.get_input_embeddings().weight
    read, products = directions.tokens_read(model, rows(), places.before, 4)
    expected = rows() @ (module(weight) - module.bias).T
    assert read.tolist() == expected.topk(4).indices.tolist()
    assert torch.allclose(products, expected.topk(4).values, atol=1e-5)


def test_an_sae_on_what_an_mlp_writes_does_not_read_the_stream() -> None:
    places = directions.surroundings(tiny_causal_model("llama"), "layers.1.mlp", transcoder=False)
    assert places.before is None
    assert places.after is not None


def test_a_module_inside_another_does_not_write_into_the_stream() -> None:
    places = directions.surroundings(tiny_causal_model("llama"), "layers.1.mlp.up_proj", transcoder=False)
    assert places == directions.Surroundings(None, None)


def test_nearest_and_best_match_are_those_of_all_cosines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directions, "COMPARED", 100)  # several pieces
    cosine = torch.nn.functional.cosine_similarity
    decoder, encoder = rows(40), rows(40).flip(0)
    chosen = torch.tensor([3, 39, 0], device=DEVICE)
    latents, cosines = directions.nearest(decoder, chosen, 5)
    for line, latent in enumerate(chosen.tolist()):
        own = cosine(decoder[latent][None], decoder)
        own[latent] = -2
        assert latents[line].tolist() == own.topk(5).indices.tolist()
        assert torch.allclose(cosines[line], own.topk(5).values, atol=1e-6)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    matches, best = directions.best_match((encoder, decoder), (encoder[order], decoder[order]), chosen)
    assert order[matches].tolist() == chosen.tolist()
    assert torch.allclose(best, torch.ones(3, device=DEVICE), atol=1e-5)
