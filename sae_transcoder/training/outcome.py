"""What becomes of a run: its result, or the exception that ended it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sae_transcoder.coder.stored_coders import find_coders
from sae_transcoder.coder.trained_coder import TrainedCoder, load_coder
from sae_transcoder.config import Config
from sae_transcoder.run_store.eval_file import Evaluation


@dataclass(frozen=True)
class TrainedRun:
    """A run that is done: its settings, its directory, and its held-out metrics (names and units: metric_names.py)."""

    cfg: Config
    directory: Path
    evaluation: Evaluation

    @cached_property
    def saes(self) -> dict[str, TrainedCoder]:
        """The trained coders, SAEs or transcoders, float32 on the CPU: {hookpoint: coder}, with several seeds {hookpoint/seed<N>: coder}.

        Each is sparsify's: called with x [token, d_in] it gives `sae_out` [token, d_in], `latent_acts` and `latent_indices` [token, k];
        `encoder.weight` and `W_dec` are [latent, d_in]. Of batchtopk and jumprelu the latents above `threshold` fire, of which there are
        differing numbers: the last axis of latent_acts is as long as the most there are for a token, with zeros at others.
        """
        folders = find_coders(self.directory / "coders")
        return {name: load_coder(folder) for name, folder in folders.items()}


Outcome = TrainedRun | Exception
