"""What sparsify's Trainer and our loop are compared on."""

import torch

from helpers.tiny_models import VOCABULARY

POINTS = {
    ("llama", "sae"): ["layers.1", "layers.2"],
    ("llama", "transcoder"): ["layers.1.mlp", "layers.2.mlp"],
    ("gpt2", "sae"): ["h.1", "h.2.attn"],
    ("gpt2", "transcoder"): ["h.0.mlp", "h.2.mlp"],
    ("neox", "sae"): ["layers.1.attention", "layers.2.mlp"],
    ("neox", "transcoder"): ["layers.1.mlp", "layers.2.mlp"],
}


SAMPLES, POSITIONS = 48, 16


def assert_equal(ours: dict, theirs: dict) -> None:
    assert list(ours) == list(theirs)
    for name in ours:
        for key, value in theirs[name].state_dict().items():
            assert torch.equal(ours[name].state_dict()[key], value), f"{name}.{key}"


def tokens() -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (SAMPLES, POSITIONS), generator=torch.Generator().manual_seed(1))
