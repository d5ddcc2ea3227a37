"""How many latents are active: k falls linearly to its final value."""

from sae_transcoder.coder.corrected_coder import SparseCoder
from sae_transcoder.config import Config


def k_at(cfg: Config, k_start: int, num_done: int) -> int:
    """Active latents after `num_done` steps: from `k_start` linearly to `k` over `k_decay_steps`."""
    if num_done >= cfg.k_decay_steps:
        return cfg.k
    progress = num_done / cfg.k_decay_steps
    return round(k_start * (1 - progress) + cfg.k * progress)


def valid_k(coder: SparseCoder, k: int) -> int:
    """The smallest valid number of active latents, `k` or above: at most all latents, for groupmax a divisor of their number."""
    k = min(k, coder.num_latents)
    if coder.cfg.activation == "groupmax":
        k = next(divisor for divisor in range(k, coder.num_latents + 1) if coder.num_latents % divisor == 0)
    return k
