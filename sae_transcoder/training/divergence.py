"""When training has come to nothing: it has diverged, or has seen no token."""

import math
from collections.abc import Iterable, Mapping

LOSSES = ("fvu", "auxk", "multi_topk_fvu", "ce", "kl")
HOPELESS_FVU = 1e4  # coders that learn are below 1, and start at most a few times above


class Diverged(Exception):
    """A run's loss is not finite, or so large that training will not recover; or it has trained on nothing."""


def refuse_diverged(step: int, metrics: Mapping[str, float]) -> None:
    """Raises Diverged for a training loss that is not finite, or an FVU beyond hope."""
    for name, value in metrics.items():
        kind = name.split("/")[0]
        if kind in LOSSES and (not math.isfinite(value) or (kind == "fvu" and value > HOPELESS_FVU)):
            raise Diverged(
                f"{name} is {value:.3g} at step {step}: training diverged; lower lr, or where no rate helps, see whether the model's weights are "
                "finite and dtype wide enough for its activations"
            )


def refuse_untrained(names: Iterable[str]) -> None:
    """Raises Diverged where coders have seen no token, once training is over."""
    if untrained := ", ".join(names):
        raise Diverged(
            f"{untrained}: no batch had two positions that count; check exclude_tokens, exclude_first_tokens, max_norm_multiple and train_on"
        )
