"""The hooks of TransformerLens that stand for a module; tests/exports/test_transformer_lens.py compares what they hold."""

from dataclasses import replace
from pathlib import Path

import pytest

from helpers.command_line import composed
from helpers.model_configs import config_only
from sae_transcoder.config import ConfigError
from sae_transcoder.language_model import hookpoints, loading
from sae_transcoder.language_model.transformer_lens_names import FAMILIES, Hooks, hooks, module_at


@pytest.mark.parametrize(
    ("family", "stack", "hookpoint", "hook"),
    [
        ("llama", "layers", "layers.11", "blocks.11.hook_resid_post"),
        ("llama", "layers", "layers.3.self_attn", "blocks.3.hook_attn_out"),
        ("gpt2", "h", "h.0.mlp", "blocks.0.hook_mlp_out"),
        ("gpt_neox", "layers", "layers.2.attention", "blocks.2.hook_attn_out"),
        ("gemma3", "language_model.layers", "language_model.layers.7", "blocks.7.hook_resid_post"),
        ("gemma2", "layers", "layers.1.post_feedforward_layernorm", "blocks.1.hook_mlp_out"),
    ],
)
def test_the_hook_of_an_sae(family: str, stack: str, hookpoint: str, hook: str) -> None:
    assert hooks(family, stack, hookpoint, transcoder=False) == Hooks(hook, hook)


def test_the_hooks_of_a_transcoder_are_its_input_and_its_target() -> None:
    assert hooks("gpt2", "h", "h.4.mlp", transcoder=True) == Hooks("blocks.4.mlp.hook_in", "blocks.4.hook_mlp_out")
    assert hooks("llama", "layers", "layers.4", transcoder=True) == Hooks("blocks.4.hook_resid_pre", "blocks.4.hook_resid_post")


@pytest.mark.parametrize(
    ("family", "hookpoint", "transcoder"),
    [
        ("gemma2", "layers.1.mlp", False),  # hook_mlp_out lies behind the norm
        ("gemma2", "layers.1.mlp", True),
        ("bloom", "layers.1.mlp", False),
        ("llama", "layers.1.self_attn", True),  # no hook at the attention's input
        ("llama", "layers.1.mlp.act_fn", False),
        ("llama", "embed_tokens", False),
        ("mamba", "layers.1", False),
    ],
)
def test_modules_without_a_hook(family: str, hookpoint: str, transcoder: bool) -> None:
    assert hooks(family, "layers", hookpoint, transcoder=transcoder) is None


def test_the_module_of_a_hook_is_the_one_whose_hook_it_is() -> None:
    for family, modules in FAMILIES.items():
        for name in ("", *(f".{module}" for module in modules)):
            there = hooks(family, "layers", f"layers.3{name}", transcoder=False)
            assert there is not None
            assert module_at(family, "layers", there.output, transcoder=False) == f"layers.3{name}"
    assert module_at("llama", "layers", "blocks.3.hook_resid_pre", transcoder=False) == "layers.2"
    assert module_at("gpt2", "h", "blocks.*.hook_mlp_out", transcoder=True) == "h.*.mlp"
    assert module_at("gpt2", "h", "blocks.4.ln2.hook_normalized", transcoder=True) == "h.4.mlp"


@pytest.mark.parametrize(
    ("family", "hook"),
    [
        ("llama", "blocks.0.hook_resid_pre"),  # the embedding, below all layers
        ("llama", "blocks.3.attn.hook_z"),
        ("llama", "blocks.3.ln2.hook_normalized"),  # an SAE on the input of an MLP
        ("mamba", "blocks.3.hook_resid_post"),
        ("llama", "layers.3"),
    ],
)
def test_hooks_without_a_module(family: str, hook: str) -> None:
    assert module_at(family, "layers", hook, transcoder=False) is None


def test_hookpoints_by_other_names_are_told_by_the_models_own(tmp_path: Path) -> None:
    folder = config_only("openai-community/gpt2", tmp_path)
    cfg = composed("model_type=sae", f"model_name={folder}")
    outline = loading.outline(cfg)
    answers = {
        "blocks.6.hook_resid_post": "is a name of TransformerLens; write 'hookpoints=[\"h.6\"]', or 'layers=[6]' site=residual",
        "blocks.*.hook_mlp_out": "is a name of TransformerLens; write 'hookpoints=[\"h.*.mlp\"]'",
        "blocks.6.attn.hook_z": "is a name of TransformerLens for no module's output; GPT2LMHeadModel has wte",
        "transformer.h.6.mlp": "begins above the base model; leave out transformer, and write 'hookpoints=[\"h.6.mlp\"]'",
        "h.6.mpl": "matches no module; GPT2LMHeadModel has wte",
    }
    with pytest.raises(ConfigError) as refused:
        hookpoints.hookpoint_names(replace(cfg, hookpoints=[*answers, "h.1"]), outline)
    for fault, (pattern, answer) in zip(refused.value.faults, answers.items(), strict=True):
        assert f": {pattern} {answer}" in fault
