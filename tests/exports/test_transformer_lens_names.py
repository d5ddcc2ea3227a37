"""The hooks of TransformerLens that stand for a module; tests/exports/test_transformer_lens.py compares what they hold."""

import pytest

from sae_transcoder.exports.transformer_lens_names import Hooks, hooks


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
