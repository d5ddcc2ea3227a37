"""What becomes of a run: its result, or why there is none."""

from dataclasses import dataclass
from pathlib import Path

from sae_transcoder.coder.corrected_coder import SparseCoder
from sae_transcoder.coder.names import coder_dir
from sae_transcoder.run_store.eval_file import Evaluation


@dataclass(frozen=True)
class Result:
    """A finished run: its directory and the held-out metrics of its coders."""

    directory: Path
    evaluation: Evaluation

    @property
    def coders(self) -> dict[str, SparseCoder]:
        """{coder: as exported}, read anew: a pack that is done holds no coders."""
        folders = {c.coder: self.directory / "coders" / coder_dir(c.coder) for c in self.evaluation.coders}
        return {name: SparseCoder.load_from_disk(folder) for name, folder in folders.items()}


Outcome = Result | Exception
