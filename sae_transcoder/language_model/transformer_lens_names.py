"""TransformerLens's names for the modules that coders are trained on, by model family, as in TransformerLens 3.9.0.

Its hook_resid_post is the output of a layer. Its hook_attn_out and hook_mlp_out are what is added to the residual stream: the output of the
attention and of the MLP or, in families that normalise these, of the norm behind them (transformer_block.py). The input of an MLP, behind the
norm and its weights, has a name in TransformerBridge and in SAELens's HookedSAETransformer alone, mlp.hook_in; ln2.hook_normalized is the same
without the weights. All this holds for weights as they are (HookedTransformer.from_pretrained_no_processing, as SAELens loads models);
from_pretrained folds the norms' weights into the next module, and centres what is written into the residual stream.
"""

import re
from dataclasses import dataclass

ATTENTION, MLP = "hook_attn_out", "hook_mlp_out"
PRE_NORM = {"self_attn": ATTENTION, "mlp": MLP}
POST_NORM = {"post_attention_layernorm": ATTENTION, "post_feedforward_layernorm": MLP}

FAMILIES: dict[str, dict[str, str]] = {
    "llama": PRE_NORM,
    "mistral": PRE_NORM,
    "mixtral": PRE_NORM,
    "qwen2": PRE_NORM,
    "qwen3": PRE_NORM,
    "phi": PRE_NORM,
    "phi3": PRE_NORM,
    "gemma": PRE_NORM,
    "gemma2": POST_NORM,
    "gemma3": POST_NORM,
    "gemma3_text": POST_NORM,
    "olmo": PRE_NORM,
    "olmo2": POST_NORM,
    "olmo3": POST_NORM,
    "olmoe": PRE_NORM,
    "gpt2": {"attn": ATTENTION, "mlp": MLP},
    "gpt_neo": {"attn": ATTENTION, "mlp": MLP},
    "gptj": {"attn": ATTENTION, "mlp": MLP},
    "gpt_neox": {"attention": ATTENTION, "mlp": MLP},
    "opt": {"self_attn": ATTENTION},  # its MLP is no module
    "bloom": {},  # its attention and its MLP add the residual stream to their output
}
"""{transformers' model_type: {module of a layer: the hook at its output}}"""

MLP_INPUTS = ("mlp.hook_in", "hook_mlp_in", "ln2.hook_normalized")
"""Hooks that other programs name for the input of a transcoder."""

MODEL_NAMES = {f"openai-community/{name}": name for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}
"""{hub id: TransformerLens's name}, where it knows another one than the id."""


@dataclass(frozen=True)
class Hooks:
    """Where TransformerLens reads a coder's input, and, of a transcoder, its target; the same hook for an SAE."""

    input: str
    output: str


def hooks(model_type: str, stack: str, hookpoint: str, *, transcoder: bool) -> Hooks | None:
    """The hooks of a module; None where TransformerLens has none. model_type: transformers' name of the family; stack: of its list of layers."""
    modules = FAMILIES.get(model_type)
    layer, _, module = hookpoint.removeprefix(f"{stack}.").partition(".")
    if modules is None or not hookpoint.startswith(f"{stack}.") or not layer.isdigit():
        return None
    block = f"blocks.{int(layer)}"
    if not module:
        return Hooks(f"{block}.hook_resid_{'pre' if transcoder else 'post'}", f"{block}.hook_resid_post")
    if module not in modules:
        return None
    output = f"{block}.{modules[module]}"
    if not transcoder:
        return Hooks(output, output)
    return Hooks(f"{block}.mlp.hook_in", output) if module == "mlp" else None


def module_at(model_type: str, stack: str, hook: str, *, transcoder: bool) -> str | None:
    """The module whose output this hook reads or, for a transcoder, whose input; `*` for a layer stays. None where no module has it.

    model_type: transformers' name of the family; stack: of its list of layers; hook: such as blocks.6.hook_resid_post.
    """
    match = re.fullmatch(r"blocks\.(\d+|\*)\.([\w.]+)", hook)
    if match is None or (modules := FAMILIES.get(model_type)) is None:
        return None
    layer, name = match.groups()
    if name == "hook_resid_post":
        return f"{stack}.{layer}"
    if name == "hook_resid_pre":
        return f"{stack}.{int(layer) - 1}" if layer.isdigit() and int(layer) > 0 else None
    if transcoder and name in MLP_INPUTS:
        return f"{stack}.{layer}.mlp" if "mlp" in modules else None
    return next((f"{stack}.{layer}.{module}" for module, output in modules.items() if output == name), None)
