"""What the language model predicts on a text, as it is or with coders in the place of modules."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sae_transcoder.coder.names import hookpoint_of
from sae_transcoder.coder.sparse_products import EmbeddingBags
from sae_transcoder.coder.trained_coder import TrainedCoder
from sae_transcoder.config import ConfigError
from sae_transcoder.evaluation.reconstruction import reconstruct
from sae_transcoder.evaluation.splice import cross_entropy

Factors = Mapping[int, float]  # {latent: what its activation is multiplied by}


@dataclass(frozen=True)
class Predictions:
    """The next-token predictions of a text: the ids and texts of its tokens [position], the model's `logits` [position, vocabulary], float32 on
    the CPU, and the text of each id in `vocabulary`."""

    ids: list[int]
    tokens: list[str]
    logits: Tensor
    vocabulary: list[str] = field(repr=False)

    @property
    def losses(self) -> Tensor:
        """The cross-entropy in nats of each token but the first, [position - 1]."""
        return cross_entropy(self.logits[None], torch.tensor([self.ids]))[0]

    def next_tokens(self, count: int = 5, position: int = -1) -> list[tuple[str, float]]:
        """The likeliest tokens after a position, the last one by default, with their probabilities, the likeliest first."""
        likeliest = self.logits[position].softmax(-1).topk(count)
        return [(self.vocabulary[token], p) for p, token in zip(likeliest.values.tolist(), likeliest.indices.tolist(), strict=True)]


def scaled_reconstruction(coder: TrainedCoder, x: Tensor, factors: Factors) -> Tensor:
    """The coder's output [token, d] for inputs x [token, d_in], with the activations of some latents multiplied by their factors."""
    out, entries = reconstruct(coder, x)
    change = torch.zeros(coder.num_latents)
    for latent, factor in factors.items():
        change[latent] = factor - 1
    changed = entries.where(change[entries.latents] != 0)
    added = changed.preacts * change[changed.latents]
    return out + EmbeddingBags(changed.indices(len(x), coder.num_latents)).matmul(added, coder.W_dec)


def check_splice(splice: Mapping[str, Factors], coders: Mapping[str, TrainedCoder]) -> None:
    """Raises ConfigError for names and latents that the coders {name: coder} do not have, and for two coders that replace the same module."""
    faults, by_hookpoint = [], dict[str, list[str]]()
    for name, factors in splice.items():
        if name not in coders:
            faults.append(f"{name}: the run has no such coder; it has {', '.join(coders)}")
            continue
        by_hookpoint.setdefault(hookpoint_of(name), []).append(name)
        count = coders[name].num_latents
        faults += [
            f"latent {latent} of {name}: there are {count:,}, 0 to {count - 1}" for latent in factors if not 0 <= latent < count
        ]
    for hookpoint, names in by_hookpoint.items():
        if len(names) > 1:
            faults.append(f"{', '.join(names)}: each replaces {hookpoint}; splice one of them")
    if faults:
        raise ConfigError(*faults)
