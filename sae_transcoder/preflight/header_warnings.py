"""What is allowed and likely not meant; the header shows it. Nothing here imports torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sae_transcoder.config import Config, LossFn, Optimizer

if TYPE_CHECKING:
    from sae_transcoder.data.run_length import RunLength

# Numbers in the hidden states of a batch [token, width] below which a GPU waits for kernel launches more than a quarter of the time, and at
# which it is busy. Arithmetic for SmolLM2-135M: 5 ms of launches a batch, 1 us of work a token. No GPU has been measured.
FEW, BUSY = 2**23, 2**25
STEPS = 200  # optimizer steps that a larger batch must leave the run
SHORT_RUN = 100_000_000  # tokens below which Adam's automatic rate is far too low (README, "Learning rate")


def warnings(cfg: Config, planned: RunLength, device: str, width: int) -> list[str]:
    """Warnings for a run of this length on a device of type cpu or cuda; width: of the language model's hidden states."""
    tokens = planned.samples * cfg.max_seq_length
    found = []
    if cfg.auxk_alpha > 0 and cfg.dead_feature_threshold >= tokens:
        found.append(
            f"dead_feature_threshold={cfg.dead_feature_threshold:,} is not below the run's {tokens:,} tokens: no latent can count as dead, "
            "AuxK never acts"
        )
    if cfg.lr is None and cfg.optimizer == Optimizer.adam and tokens < SHORT_RUN:
        found.append(
            f"lr=null: Adam's automatic rate is made for billions of tokens, the run has {tokens:,}; try lr=1e-3 and above"
        )
    return found + (small_batches(cfg, planned, width) if device == "cuda" else [])


def small_batches(cfg: Config, planned: RunLength, width: int) -> list[str]:
    """A batch that is over before a GPU's kernels are launched, where a larger one can be set; width: of the language model's hidden states."""
    each = cfg.max_seq_length * width  # numbers of a sequence
    if cfg.loss_fn != LossFn.fvu or cfg.batch_size * each >= FEW:
        return []
    busy = power_of_two(BUSY / each)
    factor = max(
        f for f in range(1, cfg.grad_acc_steps + 1) if cfg.grad_acc_steps % f == 0 and (f == 1 or cfg.batch_size * f <= busy)
    )
    alike = cfg.batch_size * factor  # sequences, with as many to an optimizer step
    ranks = planned.batch // cfg.batch_size
    larger = min(busy, power_of_two(planned.samples / (STEPS * ranks)))
    fixes = []
    if factor > 1:
        tokens = f"{alike * cfg.max_seq_length:,} tokens, as many an optimizer step as now"
        fixes.append(f"set batch_size={alike} with grad_acc_steps={cfg.grad_acc_steps // factor} ({tokens})")
    if alike * each < FEW and larger > alike:
        fixes.append(
            f"set batch_size={larger} with grad_acc_steps=1 ({larger * cfg.max_seq_length:,} tokens) and a rate tuned for it"
        )
    if not fixes:
        return []
    have = f"batch_size={cfg.batch_size}: {cfg.batch_size * cfg.max_seq_length:,} tokens a batch leave a GPU waiting for kernel launches"
    return [f"{have}; {', or '.join([*fixes, 'train more runs side by side'])}"]


def power_of_two(number: float) -> int:
    """The power of two nearest to a number; at least 1."""
    return 2 ** max(0, round(math.log2(number)))
