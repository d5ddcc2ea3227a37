"""Language models of several architectures, a few thousand weights each, and configs for them."""

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from helpers.device import DEVICE, SETTINGS
from sae_transcoder.config import Config
from sae_transcoder.config.composer import from_values
from sae_transcoder.language_model.loading import DEMO

VOCABULARY = 256
SIZES: dict[str, int] = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    max_position_embeddings=64,
)
TINY = {
    "llama": lambda: LlamaConfig(**SIZES),
    "gpt2": lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_inner=48, n_layer=4, n_head=4, n_positions=64),
    "neox": lambda: GPTNeoXConfig(**SIZES),
    "bert": lambda: BertConfig(**SIZES),
}


def tiny_model(family: str) -> PreTrainedModel:
    """A model of random weights, the same at every call."""
    torch.manual_seed(0)
    return AutoModel.from_config(TINY[family]()).eval().requires_grad_(False).to(DEVICE)


def tiny_causal_model(family: str) -> PreTrainedModel:
    """The same with a language-modelling head."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(TINY[family]()).eval().requires_grad_(False).to(DEVICE)


def tiny_config(model_type: str, **settings: object) -> Config:
    """A config for a tiny model's activations; its data set is never read."""
    usual = dict(
        model_name="tiny", dataset_kind="memmap", dataset_name="none", batch_size=2, grad_acc_steps=1, expansion_factor=4, k=4,
        init_seeds=[0], max_seq_length=16,
    )  # fmt: skip
    return from_values({"model_type": model_type} | usual | SETTINGS | settings)


def demo_tokenizer() -> PreTrainedTokenizerBase:
    """The bundled tokenizer."""
    return AutoTokenizer.from_pretrained(DEMO)
