"""Which positions of a batch count, and what a coder is given and asked for at them."""

import torch
from torch import Tensor, isin, tensor

from sae_transcoder.config import Config, ModelType
from sae_transcoder.forward import Activations
from sae_transcoder.ranks import ALONE, Ranks
from sae_transcoder.transfer import onto


def counted(cfg: Config, tokens: Tensor) -> Tensor | None:
    """Which positions of `tokens` [batch, position] count by their token and place, [batch * position], where the tokens are; None: all."""
    if not cfg.exclude_tokens and not cfg.exclude_first_tokens:
        return None
    mask = isin(tokens, tensor(cfg.exclude_tokens, dtype=tokens.dtype, device=tokens.device), invert=True)
    mask[:, : cfg.exclude_first_tokens] = False
    return mask.flatten()


def kept(cfg: Config, seen: Activations, mask: Tensor | None, ranks: Ranks = ALONE) -> Tensor | None:
    """Which positions count at a hookpoint, in order [token]: those of `mask` whose norm is not an outlier; None: all.

    ranks: those that share the batch, of whose norms the median is taken. A mask on the host is read there: nothing waits for a GPU.
    """
    device = seen.output.device
    if cfg.max_norm_multiple is None:
        return None if mask is None else onto(device, mask.nonzero()[:, 0])
    given = seen.input if cfg.model_type == ModelType.transcoder else seen.output
    norms = given.detach().flatten(0, 1).float().norm(dim=-1)
    mask = torch.ones_like(norms, dtype=torch.bool) if mask is None else onto(device, mask)
    counting = norms[mask]
    if ranks.size == 1:
        median = counting.median()
    else:  # ranks may have different numbers of them
        padded = counting.new_full((cfg.batch_size * cfg.max_seq_length,), torch.nan)
        padded[: len(counting)] = counting
        median = ranks.concatenated(padded).nanmedian()
    return (mask & (norms <= cfg.max_norm_multiple * median)).nonzero()[:, 0]


def pair(cfg: Config, seen: Activations, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """A coder's input and target at a hookpoint, float32, each [token, d], at the positions `kept` [token]; one tensor for an SAE."""

    def chosen(values: Tensor) -> Tensor:
        flat = values.flatten(0, 1)
        return (flat if kept is None else flat[kept]).float()

    y = chosen(seen.output)
    return (chosen(seen.input) if cfg.model_type == ModelType.transcoder else y), y
