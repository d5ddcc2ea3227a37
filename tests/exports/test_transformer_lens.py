"""TransformerLens's activations at the hooks that an export names are those that coders are trained on (pytest -m peers)."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, GPTNeoXConfig, LlamaConfig, PreTrainedConfig

from helpers.peers import run_in
from helpers.tiny_models import SIZES
from sae_transcoder.language_model import forward, layers
from sae_transcoder.language_model.loading import DEMO
from sae_transcoder.language_model.transformer_lens_names import hooks

pytestmark = pytest.mark.peers

FAMILIES = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2),
    "gpt_neox": GPTNeoXConfig(**SIZES),
    "gpt2": GPT2Config(vocab_size=256, n_embd=32, n_layer=4, n_head=4, n_positions=64, n_ctx=64),
    "gemma2": Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8),
}

# Both ways in which SAELens runs a language model. HookedTransformer takes a folder once it stands among its names, and Gemma 2 in its official
# sizes alone.
RUN_IN_TRANSFORMER_LENS = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from sae_lens import HookedSAETransformer
from transformer_lens import loading_from_pretrained
from transformer_lens.model_bridge import TransformerBridge
for folder in map(Path, sys.argv[1:]):
    model = AutoModelForCausalLM.from_pretrained(folder)
    names, tokens = json.loads((folder / "hooks.json").read_text()), load_file(folder / "ours.safetensors")["tokens"]
    lenses = {"bridge": TransformerBridge.boot_transformers(str(folder), hf_model=model, device="cpu", dtype=torch.float32)}
    if model.config.model_type != "gemma2":
        loading_from_pretrained.OFFICIAL_MODEL_NAMES.append(str(folder))
        lenses["hooked"] = HookedSAETransformer.from_pretrained_no_processing(str(folder), hf_model=model, device="cpu", dtype=torch.float32)
    for kind, lens in lenses.items():
        with torch.no_grad():
            cache = lens.run_with_cache(tokens)[1]
        save_file({name: cache[name].contiguous() for name in names}, folder / f"{kind}.safetensors")
"""


def write_model(folder: Path, config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    """Writes a tiny model whose norms are not trivial, with the bundled tokenizer. Returns {hook: what our forward sees there}."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter)) if parameter.dim() == 1 else parameter.mul_(3)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder)
    tokens = torch.randint(3, 250, (2, 12))
    stack, blocks = layers.layer_stack(model)
    children = ["", *(f".{name}" for name, _ in blocks[1].named_children())]
    seen = forward.capture(model, [f"{stack}.1{child}" for child in children], tokens)
    ours = {}
    for name, activations in seen.items():
        for transcoder in (False, True):
            if place := hooks(config.model_type, stack, name, transcoder=transcoder):
                ours[place.output] = activations.output
                if transcoder:
                    ours[place.input] = activations.input
    (folder / "hooks.json").write_text(json.dumps(list(ours)))
    save_file({"tokens": tokens}, folder / "ours.safetensors")
    return ours


def test_hooks_hold_what_the_modules_read_and_write(tmp_path: Path) -> None:
    ours = {tmp_path / str(i): write_model(tmp_path / str(i), config) for i, config in enumerate(FAMILIES.values())}
    done = run_in("saelens", "-c", RUN_IN_TRANSFORMER_LENS, *ours)
    assert done.returncode == 0, done.stderr
    for (folder, seen), family in zip(ours.items(), FAMILIES, strict=True):
        assert len(seen) == (4 if family == "gemma2" else 5), family
        for kind in ("bridge", "hooked")[: 1 if family == "gemma2" else 2]:
            theirs = load_file(folder / f"{kind}.safetensors")
            for hook, value in seen.items():
                torch.testing.assert_close(
                    theirs[hook], value, atol=3e-6 * value.abs().max().item(), rtol=0, msg=f"{family} {kind} {hook}"
                )
