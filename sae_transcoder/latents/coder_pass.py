"""What a pass over text keeps of one coder: statistics of its latents, as the batches come."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sae_transcoder.coder.positions import PositionFilter
from sae_transcoder.coder.trained_coder import TrainedCoder
from sae_transcoder.language_model.forward import Activations
from sae_transcoder.latents.activity import Activity
from sae_transcoder.latents.batch import Batch, Firings
from sae_transcoder.latents.logs import Together, Windows
from sae_transcoder.latents.samples import Samples
from sae_transcoder.latents.strongest import Strongest


class CoderPass:
    """One coder. `tokens`: positions that counted so far; `together_tokens`: those of them in the sample of Together."""

    def __init__(
        self,
        coder: TrainedCoder,
        position_filter: PositionFilter,
        latents: Sequence[int] | None,
        top: int,
        share: float,
        folder: Path,
        sizes: dict[str, int],
    ):
        """latents: those that are kept, None for all; top: strongest contexts of each; share: of the tokens on which it is counted what fires
        together; folder: of the files that grow, which hold `sizes` numbers."""
        device = coder.b_dec.device
        self.coder, self.filter = coder, position_filter
        self.latents = torch.arange(coder.num_latents) if latents is None else torch.tensor(latents)
        self.rows = None
        if latents is not None:
            self.rows = torch.full((coder.num_latents,), -1, device=device)
            self.rows[self.latents.to(device)] = torch.arange(len(latents), device=device)
        folder.mkdir(parents=True, exist_ok=True)
        self.activity = Activity(len(self.latents), device)
        self.strongest = Strongest(len(self.latents), top, device)
        self.samples = Samples(len(self.latents), device)
        self.windows = Windows(folder, sizes)
        self.together = Together(folder, sizes, share)
        self.tokens = sizes.get("tokens", 0)

    def add(self, batch: Batch, activations: Activations) -> None:
        """Adds a batch, with what the coder's module received and gave."""
        kept = self.filter.kept(activations, self.filter.by_token(batch.tokens))
        x, _ = self.filter.inputs_and_targets(activations, kept)
        self.tokens += len(x)
        entries = self.coder.firing(x)
        positions = entries.tokens if kept is None else kept[entries.tokens]
        self.together.add(batch, entries.latents, positions, kept)
        firings = Firings(entries.preacts.float(), entries.latents, positions)
        if self.rows is not None:
            rows = self.rows[entries.latents]
            firings = firings._replace(rows=rows).where(rows >= 0)
        if not len(firings.rows):
            return
        self.activity.add(firings)
        strong, sampled = self.strongest.entering(batch, firings), self.samples.entering(batch, firings)
        both = Firings(*(torch.cat(pair) for pair in zip(strong, sampled, strict=True)))
        windows = self.windows.append(batch, firings, both)
        self.strongest.enter(batch, strong, windows[: len(strong.rows)])
        self.samples.enter(batch, sampled, windows[len(strong.rows) :])

    def tensors(self) -> dict[str, Tensor]:
        """The statistics {part.name: tensor}, which change in place or are replaced."""
        parts: dict[str, Activity | Strongest | Samples] = {
            "activity": self.activity,
            "strongest": self.strongest,
            "samples": self.samples,
        }
        return {f"{part}.{name}": values for part, owner in parts.items() for name, values in owner.tensors().items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Takes over what `tensors` gave."""
        for name, values in tensors.items():
            part, _, own_name = name.partition(".")
            setattr(getattr(self, part), own_name, values.to(self.coder.b_dec.device))

    def sizes(self) -> dict[str, int]:
        """How much is in the files, and how many tokens counted."""
        return {**self.windows.sizes(), **self.together.sizes(), "tokens": self.tokens}
