"""The number format of a language model's weights."""

import torch

from sae_transcoder.config import ModelConfig


def resolve_dtype(cfg: ModelConfig, device: torch.device) -> torch.dtype:
    """The weights' number format: `dtype` where it is set, else bfloat16 on a GPU that has it, else float32."""
    if cfg.dtype is not None:
        return getattr(torch, cfg.dtype)
    if device.type != "cuda":
        return torch.float32
    # Without a GPU here, the run will be on another machine, whose GPUs most likely have bfloat16.
    has_bfloat16 = not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bfloat16 else torch.float32
