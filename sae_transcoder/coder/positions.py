"""Which positions of a batch count, and what a coder is given and asked for at them."""

from collections.abc import Hashable

import torch
from torch import Tensor, isin, tensor

from sae_transcoder.config import Config, ModelType
from sae_transcoder.distributed import ALONE, Ranks
from sae_transcoder.language_model.forward import Activations
from sae_transcoder.process.to_device import onto, true_places


def key(cfg: Config) -> Hashable:
    """The same for runs whose positions at a hookpoint, and inputs and targets there, are the same."""
    return cfg.model_type, tuple(cfg.exclude_tokens), cfg.exclude_first_tokens, cfg.max_norm_multiple


def counted(cfg: Config, tokens: Tensor) -> Tensor | None:
    """Which positions of `tokens` [batch, position] count by their token and place, [batch * position], where the tokens are; None: all."""
    if not cfg.exclude_tokens and not cfg.exclude_first_tokens:
        return None
    mask = isin(tokens, tensor(cfg.exclude_tokens, dtype=tokens.dtype, device=tokens.device), invert=True)
    mask[:, : cfg.exclude_first_tokens] = False
    return mask.flatten()


def within_norm(cfg: Config, seen: Activations, mask: Tensor | None, ranks: Ranks = ALONE) -> Tensor:
    """Which positions count at a hookpoint, [batch * position]: those of `mask` (None: all) whose norm is at most `max_norm_multiple` times
    the median; ranks: those that share the batch, of whose norms the median is taken."""
    assert cfg.max_norm_multiple is not None
    given = seen.input if cfg.model_type == ModelType.transcoder else seen.output
    norms = given.detach().flatten(0, 1).float().norm(dim=-1)
    mask = torch.ones_like(norms, dtype=torch.bool) if mask is None else onto(norms.device, mask)
    every = torch.where(mask, norms, torch.inf)
    if ranks.size > 1:  # which may have different numbers of them
        own = every.new_full((cfg.batch_size * cfg.max_seq_length,), torch.inf)
        own[: len(every)] = every
        every = ranks.concatenated(own)
    middle = (every.isfinite().sum() - 1) // 2
    median = every.sort().values.gather(0, middle.clamp(min=0)[None])
    return mask & (norms <= cfg.max_norm_multiple * median)


def kept(cfg: Config, seen: Activations, mask: Tensor | None, ranks: Ranks = ALONE) -> Tensor | None:
    """Which positions count at a hookpoint, in order [token]: those of `mask` whose norm is not an outlier; None: all.

    With `max_norm_multiple` a GPU is waited for. A mask on the host is read there.
    """
    if cfg.max_norm_multiple is None:
        return None if mask is None else onto(seen.output.device, mask.nonzero()[:, 0])
    return true_places([within_norm(cfg, seen, mask, ranks)])[0]


def pair(cfg: Config, seen: Activations, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """A coder's input and target at a hookpoint, float32, each [token, d], at the positions `kept` [token]; one tensor for an SAE."""

    def chosen(values: Tensor) -> Tensor:
        flat = values.flatten(0, 1)
        return (flat if kept is None else flat[kept]).float()

    y = chosen(seen.output)
    return (chosen(seen.input) if cfg.model_type == ModelType.transcoder else y), y
