"""How the language model's forward is done: in smaller batches, with its first layers only; what it gives stays the same."""

from pathlib import Path

import pytest
import torch
from transformers import Gemma3nTextConfig

from helpers.command_line import composed
from helpers.device import DEVICE
from helpers.short_runs import interrupted, short, weights
from helpers.tiny_models import VOCABULARY, tiny_config, tiny_model
from sae_transcoder.config import Config, ConfigError, run_dir
from sae_transcoder.language_model import forward, hookpoints, layers, loading
from sae_transcoder.language_model.forward import capture
from sae_transcoder.preflight.peak import peak
from sae_transcoder.preflight.plan import make_plan
from sae_transcoder.training import engine

pytestmark = pytest.mark.device

LAST = {"llama": "layers.1.mlp", "gpt2": "h.1.mlp", "neox": "layers.1.mlp"}
WITHOUT_LOGITS = "eval_end_to_end=false"


def ids(count: int) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (count, 12), generator=torch.Generator().manual_seed(1)).to(DEVICE)


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_a_forward_of_fewer_sequences_gives_the_activations_of_the_whole_batch(size: int) -> None:
    model = tiny_model("llama")
    whole, parts = capture(model, ["layers.1", "layers.2.mlp"], ids(5)), capture(model, ["layers.1", "layers.2.mlp"], ids(5), size)
    assert whole.keys() == parts.keys()
    for point, seen in whole.items():
        torch.testing.assert_close((parts[point].input, parts[point].output), (seen.input, seen.output), atol=1e-5, rtol=1e-5)


def test_a_run_hands_its_model_so_many_sequences_at_a_time(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    own = forward.capture

    def noted(model: object, points: object, tokens: torch.Tensor, size: int | None = None) -> object:
        asked.append((len(tokens), size))
        return own(model, points, tokens, size)

    monkeypatch.setattr(forward, "capture", noted)
    engine.train([short(cache, tmp_path, "forward_batch_size=3", "max_steps=2")])
    assert set(asked) >= {(4, 3), (3, None), (1, None)}


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_first_layers_alone_give_bit_for_bit_what_the_whole_model_gives(family: str, tiny_folder: dict[str, Path]) -> None:
    cfg = tiny_config("sae", model_name=str(tiny_folder[family]), hookpoints=[LAST[family]], eval_end_to_end=False)
    outline = loading.outline(cfg)
    count = layers.num_layers_needed(cfg, outline, hookpoints.hookpoint_names(cfg, outline))
    assert count == 2
    shorter, whole = loading.load(cfg, DEVICE, count), loading.load(cfg, DEVICE)
    assert len(layers.layer_stack(shorter)[1]) == 2
    assert len(layers.layer_stack(whole)[1]) == 4
    one, other = capture(shorter, [LAST[family]], ids(3)), capture(whole, [LAST[family]], ids(3))
    assert torch.equal(one[LAST[family]].output, other[LAST[family]].output)


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 2),
        ({"hookpoints": ["layers.0", "layers.3.mlp"]}, None),  # the last layer
        ({"hookpoints": ["layers.0", "norm"]}, None),  # beyond the stack
        ({"eval_end_to_end": True}, None),
        ({"loss_fn": "kl"}, None),
    ],
)
def test_all_layers_are_loaded_where_anything_needs_them(
    settings: dict[str, object], count: int | None, tiny_folder: dict[str, Path]
) -> None:
    usual = {"model_name": str(tiny_folder["llama"]), "hookpoints": ["layers.1"], "eval_end_to_end": False}
    cfg = tiny_config("sae", **usual | settings)
    outline = loading.outline(cfg)
    assert layers.num_layers_needed(cfg, outline, hookpoints.hookpoint_names(cfg, outline)) == count


def test_all_layers_are_loaded_of_a_model_whose_first_ones_would_change_with_their_number(tmp_path: Path) -> None:
    # Its last layers use keys and values of the layers before them: which ones do depends on how many there are.
    small = Gemma3nTextConfig(
        vocab_size=64, vocab_size_per_layer_input=64, hidden_size=16, hidden_size_per_layer_input=8, intermediate_size=32,
        num_hidden_layers=6, num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_kv_shared_layers=2, laurel_rank=4,
        layer_types=["sliding_attention", "full_attention"] * 3, activation_sparsity_pattern=[0.0] * 6,
    )  # fmt: skip
    small.save_pretrained(tmp_path)
    cfg = tiny_config("sae", model_name=str(tmp_path), hookpoints=["layers.3"], eval_end_to_end=False)
    assert layers.num_layers_needed(cfg, loading.outline(cfg), ["layers.3"]) is None


def test_a_run_with_its_models_first_layers_ends_as_with_all(cache: Path, tmp_path: Path) -> None:
    every = "eval_samples=4"
    fewer, whole = short(cache, tmp_path / "fewer", WITHOUT_LOGITS, every), short(cache, tmp_path / "whole", every)
    plans = make_plan(fewer), make_plan(whole)
    assert [plan.model_layers for plan in plans] == [3, None]
    assert peak([plans[0].memory]).parts["language model"] < peak([plans[1].memory]).parts["language model"]
    engine.train([fewer])
    engine.train([whole])
    one, other = weights(run_dir(fewer) / "coders"), weights(run_dir(whole) / "coders")
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_pack_loads_what_the_most_demanding_run_needs(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    own = loading.load
    monkeypatch.setattr(loading, "load", lambda *asked: (loaded.append(asked[2]), own(*asked))[1])
    usual = ["max_steps=2", WITHOUT_LOGITS, "eval_samples=4"]
    engine.train([short(cache, tmp_path, *usual, "layers=[0]"), short(cache, tmp_path, *usual, "layers=[1]")])
    engine.train(
        [short(cache, tmp_path, *usual, "layers=[0,2]"), short(cache, tmp_path, "max_steps=2", "eval_samples=4", "layers=[3]")]
    )
    assert loaded == [2, None]


def test_a_forward_of_fewer_sequences_is_refused_for_an_end_to_end_loss() -> None:
    with pytest.raises(ConfigError, match="forward_batch_size=2 with loss_fn=ce"):
        make_plan(composed("experiment=demo", "forward_batch_size=2", "loss_fn=ce", "auxk_alpha=0"))


def test_going_on_with_another_forward_batch_warns(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cfg = short(cache, tmp_path, "save_every=4")
    interrupted(cfg)
    engine.train([Config(**vars(cfg) | {"forward_batch_size": 2})])
    assert "forward_batch_size=2, the run was begun with forward_batch_size=None" in capsys.readouterr().out
