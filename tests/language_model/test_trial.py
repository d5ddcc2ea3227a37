"""Values that follow from the token ids in a forward without weights, and what is told of a forward that fails."""

import json
import logging
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from transformers.modeling_outputs import BaseModelOutput

from helpers.tiny_models import SIZES, tiny_config
from sae_transcoder.config import ConfigError
from sae_transcoder.language_model import hookpoints, loading, trial
from sae_transcoder.language_model.forward import Activations, spliced
from sae_transcoder.language_model.known_values import BeyondTable, KnownValues

IDS = torch.tensor([[5, 7, 1, 9], [5, 1, 1, 9]])


def on_shapes(compute: Callable[[Tensor, Tensor], object]) -> object:
    """What `compute(ids, weights)` gives where the ids are known and the weights [6, 8] are not."""
    fake_mode = FakeTensorMode()
    with fake_mode:
        weights = torch.empty(6, 8)
    known = KnownValues(fake_mode)
    ids = known.fake(IDS)
    with fake_mode, known:
        return compute(ids, weights)


@pytest.mark.parametrize(
    "ask",
    [
        lambda ids, weights: int(ids.max()) == 9,
        lambda ids, weights: bool((ids != 3).all()),
        lambda ids, weights: (ids != 1).cumsum(dim=1)[:, -1].tolist() == [3, 2],
        lambda ids, weights: (ids == 1).nonzero().shape == (3, 2),
        lambda ids, weights: torch.equal(ids, ids + 0),
        lambda ids, weights: int((torch.arange(ids.shape[1]) + 2)[-1]) == 5,
        lambda ids, weights: int(torch.tensor([4, 6])[1]) == 6,
        lambda ids, weights: int(ids.clone().masked_fill_(ids == 9, 2).max()) == 7,
        lambda ids, weights: torch.nn.functional.embedding(ids.clamp(max=5), weights).shape == (2, 4, 8),
    ],
)
def test_what_follows_from_the_ids_is_known(ask: Callable[[Tensor, Tensor], bool]) -> None:
    assert on_shapes(ask) is True


@pytest.mark.parametrize(
    "ask",
    [
        lambda ids, weights: int(weights.argmax()),
        lambda ids, weights: int(torch.randint(0, 9, (1,))),
        lambda ids, weights: int(ids.clone().copy_(weights[:2, :4]).max()),
        lambda ids, weights: bool((weights > 0).any()),
    ],
)
def test_what_weights_or_chance_decide_is_not_known(ask: Callable[[Tensor, Tensor], object]) -> None:
    before = torch.get_rng_state()
    with pytest.raises(DataDependentOutputException):
        on_shapes(ask)
    assert torch.equal(before, torch.get_rng_state()), "random numbers were drawn"


@pytest.mark.parametrize(
    "look_up",
    [
        lambda rows, table: torch.nn.functional.embedding(rows, table),
        lambda rows, table: table[rows],
        lambda rows, table: table.index_select(0, rows.flatten()),
    ],
)
def test_a_row_beyond_a_tables_end_is_told(look_up: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert tuple(on_shapes(lambda ids, table: look_up(ids.clamp(max=5), table)).shape)[-1] == 8  # type: ignore[attr-defined]
    with pytest.raises(BeyondTable, match="a table of 6 rows, asked for row 9"):
        on_shapes(look_up)


@pytest.mark.parametrize("kind", ["tensor", "tuple", "list", "names", "output", "later"])
def test_a_replaced_output_leaves_the_kind_of_a_modules_result(kind: str) -> None:
    pair = namedtuple("pair", ["states", "cache"])

    class Inner(nn.Module):
        def forward(self, states: Tensor) -> object:
            results = {"tensor": states, "tuple": (states, "cache"), "list": [states, "cache"], "names": pair(states, "cache")}
            return (results | {"output": BaseModelOutput(last_hidden_state=states), "later": (None, states)})[kind]

    class Outer(tf.PreTrainedModel):
        config_class = tf.LlamaConfig

        def __init__(self) -> None:
            super().__init__(tf.LlamaConfig())
            self.inner = Inner()

        def forward(self, states: Tensor) -> object:
            return self.inner(states)

    model, states = Outer(), torch.ones(1, 2, 3)
    plain = model(states)
    with spliced(model, ["inner"], lambda name, activations: activations.output * 2):
        changed = model(states)
    assert type(changed) is type(plain)
    tensor = {"tensor": lambda r: r, "names": lambda r: r.states, "output": lambda r: r.last_hidden_state, "later": lambda r: r[1]}
    assert torch.equal(tensor.get(kind, lambda r: r[0])(changed), states * 2)
    if kind in ("tuple", "list", "names"):
        assert changed[1] == "cache"


def tried(folder: Path, **settings: object) -> dict[str, int]:
    """The widths that a new trial finds."""
    cfg = tiny_config("sae", model_name=str(folder), **settings)
    trial._KNOWN.clear()
    return hookpoints.widths(cfg, loading.outline(cfg, dtype=torch.float32), ["layers.1"])


def test_a_trial_leaves_no_hooks_and_no_silence(tiny_folder: dict[str, Path]) -> None:
    cfg = tiny_config("sae", model_name=str(tiny_folder["llama"]))
    outline, logger = loading.outline(cfg), logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    trial._KNOWN.clear()
    hookpoints.widths(cfg, outline, ["layers.1"])
    assert logger.level == level
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in outline.modules())


def test_one_program_tries_a_model_and_its_settings_once(tiny_folder: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = tried(tiny_folder["llama"])
    counted: list[str] = []
    real = trial.try_forward
    monkeypatch.setattr(trial, "try_forward", lambda cfg, *given: [counted.append(cfg.loss_fn), real(cfg, *given)][1])
    for settings in ({}, {"k": 3}, {"loss_fn": "kl"}, {"max_seq_length": 7}, {"loss_fn": "kl"}, {"eval_end_to_end": False}):
        cfg = tiny_config("sae", model_name=str(tiny_folder["llama"]), **settings)
        assert hookpoints.widths(cfg, loading.outline(cfg, dtype=torch.float32), ["layers.1"]) == first
    assert counted == ["kl", "fvu", "fvu"]


@pytest.mark.parametrize("loss_fn", ["fvu", "ce", "kl"])
def test_a_trial_does_the_forward_of_the_loss(loss_fn: str, tiny_folder: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert tried(tiny_folder["llama"], loss_fn=loss_fn) == {"layers.1": 32}

    def failing(self: nn.Module, **given: object) -> Activations:
        raise NotImplementedError("labels" if "labels" in given else "no labels")

    monkeypatch.setattr(tf.LlamaForCausalLM, "forward", failing)
    words = r"forward of LlamaForCausalLM fails in LlamaForCausalLM \(NotImplementedError: " + (
        "labels" if loss_fn == "ce" else "no labels"
    )
    with pytest.raises(ConfigError, match=words):
        tried(tiny_folder["llama"], loss_fn=loss_fn)
    assert tried(tiny_folder["llama"], eval_end_to_end=False) == {"layers.1": 32}


def test_a_forward_that_asks_for_values_of_weights_is_told_as_such(tmp_path: Path) -> None:
    tf.JetMoeConfig(**SIZES, num_key_value_heads=2, kv_channels=8, num_local_experts=4).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"what layers.0.*router does depends on values that the weights give"):
        tried(tmp_path)


def test_one_program_makes_the_outline_of_a_config_once(tiny_folder: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder["llama"], folder)
    cfg = tiny_config("sae", model_name=str(folder))
    first = loading.outline(cfg)
    assert loading.outline(cfg) is first
    assert loading.outline(cfg, dtype=torch.float32) is not first
    assert loading.outline(cfg, layers=2).config.num_hidden_layers == 2
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 3}))
    assert loading.outline(cfg).config.num_hidden_layers == 3
    trusting = tiny_config("sae", model_name=str(folder), trust_remote_code=True)
    assert loading.outline(trusting) is not loading.outline(trusting), "its code may have changed"
